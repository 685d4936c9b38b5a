"""SIGTERM as a request: finish the step, save, leave."""

import signal
import threading
import types


class Requested:
  """True once the process was asked to end; a context manager.

  Outside the main thread, where Python allows no signal handler, it stays
  False.
  """

  def __init__(self) -> None:
    self._asked = False
    self._previous = None

  def __enter__(self) -> "Requested":
    if threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(signal.SIGTERM, self._ask)
    return self

  def __exit__(self, *_: object) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def __bool__(self) -> bool:
    return self._asked

  def _ask(self, signum: int, frame: types.FrameType | None) -> None:
    del signum, frame
    self._asked = True
