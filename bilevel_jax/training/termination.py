"""SIGTERM and Ctrl-C as a request: finish the step, save, leave."""

import os
import signal
import sys
import threading
import types
from typing import Any


class TrainingStopped(RuntimeError):
  """The run ended before its last step, for the reason in the message."""


class Interrupted(TrainingStopped):
  """Ctrl-C ended the run, after a step that is saved."""


class Requested:
  """True once the process was asked to end; a context manager.

  Outside the main thread, where Python allows no signal handler, it stays
  False.

  Attributes:
    by: the number of the signal that asked; 0: none did.
  """

  def __init__(self, *, interrupts: bool) -> None:
    """Prepares.

    Args:
      interrupts: whether Ctrl-C asks, too. A second one is not waited for: it
        raises KeyboardInterrupt, as ever.
    """
    self.by = 0
    self._signals = [signal.SIGTERM, *([signal.SIGINT] * interrupts)]
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> "Requested":
    if threading.current_thread() is threading.main_thread():
      self._previous = {s: signal.signal(s, self._ask) for s in self._signals}
    return self

  def __exit__(self, *_: object) -> None:
    for signum, previous in self._previous.items():
      signal.signal(signum, previous)

  def __bool__(self) -> bool:
    return bool(self.by)

  def _ask(self, signum: int, frame: types.FrameType | None) -> None:
    del frame
    self.by = signum
    if signum == signal.SIGINT:
      signal.signal(signum, self._previous[signum])
      if sys.stderr.isatty():  # not through rich, which may be writing
        os.write(2, b"\nsaving after this step; again: ending at once\n")
