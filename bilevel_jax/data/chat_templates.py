"""Chat templates, rendered in a process with limits: they are programs.

A template comes with a model that somebody else made. transformers renders it
in jinja2's sandbox, from which it does not get out, but which lets it loop for
ever and fill the memory. So `python -m bilevel_jax.data.chat_templates
FILE_DESCRIPTOR` renders for the process that started it, one after the other.
"""

import atexit
import contextlib
import json
import re
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

from bilevel_jax import errors, limited_process

_MOST_SECONDS = 10.0  # of CPU time, for one dialogue
_MOST_BYTES = 2**30  # of the process's memory
_MOST_CHARACTERS = 2**22  # of a dialogue
RESERVED = frozenset(
  [
    "conversations",
    "messages",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "return_assistant_tokens_mask",
  ]
)
"""Names that no variable of a template may have."""


class Rendered(NamedTuple):
  """A dialogue as a template renders it."""

  text: str
  generated: list[tuple[int, int]]
  """First and last character, and one more, of each `{% generation %}`."""


def marks_generation(template: str) -> bool:
  """Returns whether a template says itself what an assistant writes."""
  return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def render(
  template: str,
  dialogues: Sequence[tuple[Sequence[Mapping[str, Any]], bool]],
  variables: Mapping[str, Any],
) -> list[Rendered]:
  """Returns dialogues as a template renders them.

  Args:
    dialogues: messages, each with a role and a content, and whether the header
      of an answer follows them.
    variables: what else the template sees, such as eos_token or tools.

  Raises:
    ConfigError: it raises, takes too long or too much memory, or what it
      renders is too long.
  """
  request = {"chat_template": template, **variables}
  if marks_generation(template):
    request["return_assistant_tokens_mask"] = True
  message = [_MOST_SECONDS, _MOST_CHARACTERS, request, dialogues]
  with _lock:
    try:
      _Process.kept = _Process.kept or _Process()
      answer = _Process.kept.ask(message)
    except BaseException:
      _end()  # an answer that is to come would be taken for the next one
      raise
  if "error" in answer:
    raise errors.ConfigError(answer["error"])
  return [
    Rendered(text, [(start, end) for start, end in generated])
    for text, generated in answer["rendered"]
  ]


class _Process:
  """A process that renders, and ends with the one that started it."""

  kept: "_Process | None" = None

  def __init__(self):
    self._pipe, remote = connection.Pipe()
    self._process = limited_process.LimitedProcess.of_module(
      __name__,
      [remote.fileno()],
      memory=_MOST_BYTES,
      env={
        "TRANSFORMERS_VERBOSITY": "critical",  # it misses torch otherwise
        "OPENBLAS_NUM_THREADS": "1",
      },
    )
    remote.close()

  def ask(self, message: object) -> dict[str, Any]:
    """Returns what the process answers.

    Raises:
      ConfigError: it ended over it.
    """
    try:
      self._pipe.send_bytes(json.dumps(message, default=str).encode())
      return json.loads(self._pipe.recv_bytes())
    except (EOFError, OSError):
      code = self.end()
    if code == 128 + signal.SIGPROF:
      raise errors.ConfigError(f"more than {_MOST_SECONDS:g} s of computing")
    raise errors.ConfigError(f"a process that ended with exit code {code}")

  def end(self) -> int:
    """Returns the exit code; ends the process first."""
    self._pipe.close()
    return self._process.end()


_lock = threading.Lock()


@atexit.register
def _end() -> None:
  process, _Process.kept = _Process.kept, None
  if process is not None:
    process.end()


def _answer(pipe: connection.Connection) -> None:
  """Renders what comes through a pipe until its other end is closed."""
  from transformers.utils import chat_template_utils

  while True:
    seconds, most, request, dialogues = json.loads(pipe.recv_bytes())
    rendered = []
    try:
      for messages, add_generation_prompt in dialogues:
        # Its signal ends the process, in the middle of an operation too.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        (text,), generated = chat_template_utils.render_jinja_template(
          [messages], add_generation_prompt=add_generation_prompt, **request
        )
        if len(text) > most:
          raise ValueError(f"{len(text)} characters, more than {most}")
        rendered.append((text, *(generated or [[]])))
      answer: dict[str, Any] = {"rendered": rendered}
    except MemoryError:
      answer = {"error": f"more than {_MOST_BYTES / 2**30:g} GiB of memory"}
    except Exception as error:  # a template can raise anything
      answer = {"error": f"{type(error).__name__}: {str(error)[:1000]}"}
    signal.setitimer(signal.ITIMER_PROF, 0)
    pipe.send_bytes(json.dumps(answer).encode())


if __name__ == "__main__":
  with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
    _answer(connection.Connection(int(sys.argv[1])))
