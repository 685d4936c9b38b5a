"""What a completion loses by being long."""

import numpy as np


def soft_penalty(
  lengths: np.ndarray, *, longest: int, interval: int
) -> np.ndarray:
  """Returns DAPO's soft overlong punishment, in [-1, 0].

      0                                 |y| <= longest - interval
      (longest - interval - |y|) / interval    up to longest
      -1                                beyond

  arXiv 2503.14476, eq. 13, with L_max = longest and L_cache = interval.

  Args:
    lengths: [N] int, tokens of completions, EOS included.
    longest: that a completion may have.
    interval: tokens over which the penalty grows, at least 1.
  """
  over = longest - interval - np.asarray(lengths)
  return np.clip(over / interval, -1.0, 0.0).astype(np.float32)
