"""Chat templates, rendered in a process with limits: they are programs.

A template comes with a model that somebody else made. transformers renders it
in jinja2's sandbox, from which it does not get out, but which lets it loop for
ever and fill the memory. So `python -m bilevel_jax.data.chat_templates
FILE_DESCRIPTOR` renders for the process that started it, one after the other.
"""

import atexit
import contextlib
import json
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from typing import Any

from bilevel_jax import errors, limited_process

_MOST_SECONDS = 10.0  # of CPU time, for one dialogue
_MOST_BYTES = 2**30  # of the process's memory
_MOST_CHARACTERS = 2**22  # of a dialogue


def render(
  template: str,
  messages: Sequence[Mapping[str, str]],
  *,
  add_generation_prompt: bool,
  variables: Mapping[str, Any],
) -> str:
  """Returns a dialogue as a template renders it.

  Args:
    messages: each with a role and a content.
    variables: what else the template sees, such as eos_token.

  Raises:
    ConfigError: it raises, takes too long or too much memory, or what it
      renders is too long.
  """
  request = {
    "conversations": [messages],
    "chat_template": template,
    "add_generation_prompt": add_generation_prompt,
    **variables,
  }
  with _lock:
    try:
      _Process.kept = _Process.kept or _Process()
      answer = _Process.kept.ask([_MOST_SECONDS, _MOST_CHARACTERS, request])
    except BaseException:
      _end()  # an answer that is to come would be taken for the next one
      raise
  if "error" in answer:
    raise errors.ConfigError(answer["error"])
  return answer["text"]


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

  def ask(self, message: object) -> dict[str, str]:
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
    seconds, most, request = json.loads(pipe.recv_bytes())
    # Its signal ends the process, in the middle of an operation too.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
      (text,), _ = chat_template_utils.render_jinja_template(**request)
      answer = {"text": text}
      if len(text) > most:
        answer = {"error": f"{len(text)} characters, more than {most}"}
    except MemoryError:
      answer = {"error": f"more than {_MOST_BYTES / 2**30:g} GiB of memory"}
    except Exception as error:  # a template can raise anything
      answer = {"error": f"{type(error).__name__}: {str(error)[:1000]}"}
    signal.setitimer(signal.ITIMER_PROF, 0)
    pipe.send_bytes(json.dumps(answer).encode())


if __name__ == "__main__":
  with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
    _answer(connection.Connection(int(sys.argv[1])))
