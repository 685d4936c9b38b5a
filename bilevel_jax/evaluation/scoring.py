"""From right and wrong answers to accuracies with honest intervals."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95  # share of intervals that hold the truth
_RESAMPLES = 2000


class Estimate(NamedTuple):
  """A number with the bounds of its confidence interval."""

  value: float
  low: float
  high: float


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
  """Returns the bounds of Wilson's score interval of a share.

      (p + z^2/2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

  It stays within [0, 1] and has a width at 0 and at 1 too (Wilson 1927,
  equation 4 of Brown, Cai and DasGupta 2001).

  Args:
    n: answers; questions are independent, so one answer a question.

  Raises:
    ValueError: no answers, or more successes than answers.
  """
  if n < 1 or not 0 <= successes <= n:
    raise ValueError(f"successes must be in 0..n, n >= 1: {successes} of {n}")
  z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
  share = successes / n
  middle = share + z * z / (2 * n)
  half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
  scale = 1 + z * z / n
  # The ends touch 0 and 1 exactly where all answers agree; rounding may not.
  low = 0.0 if successes == 0 else max(0.0, (middle - half) / scale)
  high = 1.0 if successes == n else min(1.0, (middle + half) / scale)
  return low, high


def accuracy(scores: np.ndarray) -> Estimate:
  """Returns the mean accuracy over questions with its interval.

  Several answers to one question are not independent, so the question is what
  is counted (and resampled). With one right-or-wrong answer a question it is
  Wilson's interval; with several, the bootstrap's.

  Args:
    scores: [questions] or [questions, samples], each in [0, 1].
  """
  scores = np.asarray(scores, np.float64)
  if scores.ndim == 2:
    scores = scores.mean(axis=1)
  if np.isin(scores, (0.0, 1.0)).all():
    low, high = wilson_interval(int(scores.sum()), len(scores))
    return Estimate(float(scores.mean()), low, high)
  return bootstrap(scores)


def bootstrap(values: np.ndarray) -> Estimate:
  """Returns the mean of values with its bootstrap interval.

  Efron's BCa interval, over questions; where all values are equal it is that
  value alone.

  Args:
    values: [questions], one number a question.
  """
  values = np.asarray(values, np.float64)
  mean = float(values.mean())
  if np.ptp(values) == 0:
    return Estimate(mean, mean, mean)
  from scipy import stats

  found = stats.bootstrap(
    (values,),
    np.mean,
    n_resamples=_RESAMPLES,
    confidence_level=CONFIDENCE,
    rng=np.random.default_rng(0),
  ).confidence_interval
  return Estimate(mean, float(found.low), float(found.high))


def mean(estimates: Sequence[Estimate]) -> Estimate:
  """Returns the plain mean of independent estimates, with its interval.

      mean(v) - sqrt(sum((v_i - l_i)^2)) / n  to
      mean(v) + sqrt(sum((h_i - v_i)^2)) / n

  (Zou and Donner 2008, equation 4: variances recovered from the intervals
  l_i to h_i, which need not be symmetric.)

  Args:
    estimates: n of them, at one confidence.
  """
  values, lows, highs = np.array(estimates).T
  middle = float(values.mean())
  below = float(np.linalg.norm(values - lows)) / len(values)
  above = float(np.linalg.norm(highs - values)) / len(values)
  return Estimate(middle, middle - below, middle + above)


def pass_at_k(n: int, correct: np.ndarray | int, k: int) -> np.ndarray:
  """Returns the chance that k answers out of n hold a right one.

      1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n - c + 1}^{n} (1 - k / i)

  unbiased in the n answers sampled (Chen et al. 2021, equation 1).

  Args:
    n: answers sampled to each question.
    correct: [...] how many of them are right, c.
    k: answers allowed, at most n.

  Raises:
    ValueError: k is not in 1..n, or a count not in 0..n.
  """
  correct = np.asarray(correct)
  if not 1 <= k <= n or correct.min() < 0 or correct.max() > n:
    raise ValueError(f"1 <= k <= n and 0 <= correct <= n: k {k}, n {n}")
  i = np.arange(1, n + 1)
  factors = np.where(i > n - correct[..., None], 1 - k / i, 1.0)
  # Where fewer than k answers are wrong, the factor of i = k is there: zero.
  return 1.0 - np.prod(factors, axis=-1)


def majority(answers: list[str], reference: str) -> float:
  """Returns the chance that the most frequent answer is right: maj@k.

  Ties are shared: with m answers most frequent, a right one scores 1 / m.

  Args:
    answers: normalised answers, one a sample; equal strings are equal answers.
  """
  modes = statistics.multimode(answers)
  return 1.0 / len(modes) if reference in modes else 0.0
