"""A scoring process: `python -m bilevel_jax.rewards.worker FILE_DESCRIPTOR`.

It reads chunks of (completion, question) and answers each item on its own, so
that the process that started it knows which item was being scored when time
ran out. It imports neither JAX nor that process's `__main__`.
"""

import collections
import contextlib
import faulthandler
import os
import signal
import sys
from multiprocessing import connection
from typing import Any

from bilevel_jax import errors
from bilevel_jax.rewards import symbolic, verifiers

# A late item is ended by the parent; where there is no parent any more, the
# process ends itself this much after the deadline.
_ORPHAN_GRACE_S = 1.0


def main(pipe: connection.Connection) -> None:
  """Scores what comes through a pipe until its other end is closed.

  Args:
    pipe: gives (parts, pattern, deadline in seconds, fields of a question),
      then lists of (completion, values of those fields). Takes the string
      "ready" or a message of what is wrong, then an answer for each item.
  """
  # The parent decides about interrupts; it ends this process by SIGKILL.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  parts, pattern, deadline_s, fields = pipe.recv()
  question: Any = collections.namedtuple("Question", fields)
  try:
    built = verifiers.build(parts, pattern)
  except errors.ConfigError as error:
    pipe.send(str(error))
    return
  if "math" in parts:
    symbolic.start()  # takes long
  pipe.send("ready")
  own = os.getpid()
  with open(os.devnull, "w") as nowhere:
    while True:
      for completion, values in pipe.recv():
        faulthandler.dump_traceback_later(
          deadline_s + _ORPHAN_GRACE_S, exit=True, file=nowhere
        )
        answer = verifiers.score(built, completion, question(*values))
        if os.getpid() != own:  # a verifier forked, and this is its child
          os._exit(0)
        faulthandler.cancel_dump_traceback_later()
        pipe.send(answer)


if __name__ == "__main__":
  # The other end closes when the parent is done with us, or dies.
  with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
    main(connection.Connection(int(sys.argv[1])))
  # What verifiers have started ends with the group that this process leads.
  if os.getpgrp() == os.getpid():
    os.killpg(os.getpid(), signal.SIGKILL)
