"""A trace of some steps, for TensorBoard's or Perfetto's profile viewer."""

import pathlib

import jax


class Profiler:
  """Traces a run from the start of one step to the end of another; a context.

  Entered around the run, so that a trace that is under way when the run ends
  is written all the same.
  """

  def __init__(self, steps: tuple[int, ...], directory: pathlib.Path) -> None:
    """Makes the profiler; it does nothing where `steps` is empty.

    Args:
      steps: the first and the last step to trace, counted from 1; one step
        may stand alone.
    """
    self._first, self._last = (steps[0], steps[-1]) if steps else (0, 0)
    self._directory = directory
    self._tracing = False

  def __enter__(self) -> "Profiler":
    return self

  def __exit__(self, *error: object) -> None:
    self._stop()

  def before(self, step: int) -> None:
    """Starts the trace, if it begins with this step."""
    if step == self._first and not self._tracing:
      jax.profiler.start_trace(str(self._directory))
      self._tracing = True

  def after(self, step: int) -> None:
    """Ends the trace, if this step was its last."""
    if step >= self._last:
      self._stop()

  def _stop(self) -> None:
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()
