"""A scoring process: `python -m bilevel_jax.rewards.worker IN OUT`.

It reads items from one file descriptor and answers each on another, before it
is given the next one. It imports neither JAX nor the `__main__` of the process
that started it. A verifier shares this process with what answers for it, so
an answer is marked with the secret that came with its item: what a verifier
writes itself, or leaves behind, is no answer to a later item.
"""

import collections
import contextlib
import json
import os
import pickle
import sys
from typing import Any, BinaryIO

from bilevel_jax import errors
from bilevel_jax.rewards import symbolic, verifiers


def main(requests: BinaryIO, answers: int) -> None:
  """Scores what it reads until there is no more.

  Args:
    requests: gives (secret, (parts, pattern, sandbox, by, fields of a question
      and of a dialogue)), then (secret, (completion, values of a question's
      fields)), pickled.
    answers: file descriptor that takes a line for each of them: the secret, a
      space, and as JSON [answer, whether the process ends now]. An answer is
      the value of each part, or why there is no score; the first "", or what
      is wrong.
  """
  secret, (parts, pattern, sandbox, by, names) = pickle.load(requests)
  question: Any = collections.namedtuple("Question", names[0])
  dialogue: Any = collections.namedtuple("Dialogue", names[1])
  try:
    built = verifiers.build(parts, pattern, sandbox)
  except errors.ConfigError as error:
    _answer(answers, secret, str(error), True)
    return
  if "math" in parts:
    symbolic.start()  # takes long
  _answer(answers, secret, "", False)
  own = os.getpid()
  while True:
    secret, (completion, values) = pickle.load(requests)
    asked = question(*values)
    if asked.dialogue is not None:
      asked = asked._replace(dialogue=dialogue(*asked.dialogue))
    answer = verifiers.evaluate(built, completion, asked, by)
    if os.getpid() != own:  # a verifier forked, and this is its child
      os._exit(0)
    # What took the memory may hold it still.
    full = isinstance(answer, str) and "MemoryError" in answer[-500:]
    _answer(answers, secret, answer, full)
    if full:
      return


def _answer(descriptor: int, secret: str, answer: object, ends: bool) -> None:
  # What a verifier wrote itself ends at the first newline.
  line = f"\n{secret} {json.dumps([answer, ends])}\n".encode()
  while line:
    line = line[os.write(descriptor, line) :]


if __name__ == "__main__":
  # The other end closes when the parent is done with us, or dies.
  with contextlib.suppress(EOFError, BrokenPipeError):
    main(os.fdopen(int(sys.argv[1]), "rb"), int(sys.argv[2]))
