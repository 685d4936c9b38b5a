"""The few sizes that arrays come in, so that few programs are compiled."""


def ladder(n: int, *, step: int = 1, per_octave: int = 2) -> int:
  """Returns the least size of the ladder that is at least n.

  Between two powers of two there are `per_octave` sizes, all multiples of
  `step`, so that the programs compiled for them grow as log n.

  Args:
    step: a power of two; the least size, and the least gap.
  """
  octave = 1 << max(n - 1, 0).bit_length()
  step = max(step, octave // (2 * per_octave))
  return max(-(-n // step), 1) * step


def columns(tokens: int, step: int = 16) -> int:
  """Returns the columns of a row of so many tokens: four sizes an octave."""
  return ladder(tokens, step=step, per_octave=4)
