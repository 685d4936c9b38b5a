"""Whether two models differ, judged on the same questions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bilevel_jax.evaluation import scoring


class Difference(NamedTuple):
  """The mean of b - a, its confidence interval, and a two-sided p-value.

  NaN stands for what too few answers leave unknown.
  """

  value: float
  low: float
  high: float
  p: float


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the two-sided p-value of McNemar's exact test.

  Of the questions that one alone answered, how many were b's: under the null
  hypothesis Binomial(n, 1/2), whose tail is doubled (McNemar 1947; exact form
  in Agresti, Categorical Data Analysis, section 11.1.2).

  Args:
    a: [questions] whether a answered each, 0 or 1.
    b: [questions] whether b did, of the same questions in the same order.

  Raises:
    ValueError: not as many of a as of b, or an answer between 0 and 1.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape or not np.isin([a, b], (0.0, 1.0)).all():
    raise ValueError(
      f"a and b must be 0 or 1 and as long: {a.shape}, {b.shape}"
    )
  wins, losses = int(np.sum(b > a)), int(np.sum(a > b))
  if wins + losses == 0:
    return 1.0
  from scipy import stats

  return float(stats.binomtest(wins, wins + losses).pvalue)


def by_question(a: np.ndarray, b: np.ndarray) -> Difference:
  """Returns the difference of two models over the questions both answered.

  Where every accuracy is 0 or 1, the interval is Agresti and Min's (2005):
  Wald's, after adding half a pair to each of the four outcomes of a pair, so
  that it has a width even when the two agree on every question; and the
  p-value is McNemar's.

      d~ = sum(d) / (n + 2)
      v~ = (sum(d^2) + 1) / (n + 2) - d~^2
      d~ +- z sqrt(v~ / (n + 2))

  Where accuracies are means of several answers, both are the paired t's.

  Args:
    a: [questions] accuracies of one model, each in [0, 1].
    b: [questions] those of the other, of the same questions in the same order.

  Raises:
    ValueError: not as many of a as of b, or none.
  """
  found = _difference(*_part(a, b))
  return found._replace(p=mcnemar(a, b)) if _is_binary(a, b) else found


def mean_of(
  pairs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Difference:
  """Returns the difference of the plain means of several benchmarks.

  Benchmarks are not sampled, their questions are: with D_i and v_i the
  difference on benchmark i of B and the variance of it, as in `by_question`,

      mean of D_i +- t sqrt(sum(v_i)) / B

  The degrees of freedom are Satterthwaite's.

  Args:
    pairs: (a, b) of each benchmark, as for `by_question`.

  Raises:
    ValueError: as `by_question`.
  """
  parts = [_part(a, b) for a, b in pairs]
  values, middles, variances, freedoms = np.array(parts).T
  return _difference(
    float(values.mean()),
    float(middles.mean()),
    float(variances.sum()) / len(parts) ** 2,
    _freedom(variances, freedoms),
  )


def crossed(a: np.ndarray, b: np.ndarray) -> Difference:
  """Returns the difference of two methods over seeds and questions.

  Both vary: another seed trains another model, another question finds another
  strength. With d = b - a, of S seeds by Q questions, the variance of its mean
  has a part for each, less what was counted in both:

      v_s = var(mean of d over questions) / S
      v_q = var(mean of d over seeds) / Q
      v_e = var(what neither explains) / (S Q)
      v   = max(v_s + v_q - v_e, v_s, v_q)

  (two crossed random effects; Owen 2007, section 3). The interval is Student's
  t, its degrees of freedom Satterthwaite's. With one seed it is the paired t
  over questions; with one question (an accuracy alone) the paired t over
  seeds, and that seeds differ is then left out or all there is.

  Args:
    a: [seeds, questions] accuracies of one method, each in [0, 1].
    b: [seeds, questions] those of the other, of the same questions.

  Raises:
    ValueError: shapes differ, or are not of two dimensions.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape or a.ndim != 2 or not a.size:
    raise ValueError(
      f"a and b must be [seeds, questions] alike: {a.shape}, {b.shape}"
    )
  d = b - a
  seeds, questions = d.shape
  mean = d.mean()
  of_seeds, of_questions = d.mean(axis=1), d.mean(axis=0)
  parts = [
    (float(np.var(means, ddof=1)) / len(means), len(means) - 1)
    for means in (of_seeds, of_questions)
    if len(means) > 1
  ]
  variance = sum(part for part, _ in parts)
  if len(parts) == 2:
    rest = d - of_seeds[:, None] - of_questions + mean
    both = float(np.square(rest).sum()) / ((seeds - 1) * (questions - 1))
    variance = max(variance - both / d.size, *(part for part, _ in parts))
  if not parts:
    return Difference(float(mean), math.nan, math.nan, math.nan)
  freedom = _freedom(*np.array(parts).T)
  return _difference(float(mean), float(mean), variance, freedom)


def holm(p_values: list[float]) -> list[float]:
  """Returns p-values adjusted for there being several of them (Holm 1979).

  Args:
    p_values: of all the tests that are read together; NaN is no test.
  """
  adjusted = list(p_values)
  known = sorted((p, n) for n, p in enumerate(p_values) if not math.isnan(p))
  largest = 0.0
  for rank, (p, n) in enumerate(known):
    largest = max(largest, min(1.0, (len(known) - rank) * p))
    adjusted[n] = largest
  return adjusted


def _is_binary(a: np.ndarray, b: np.ndarray) -> bool:
  return bool(np.isin([a, b], (0.0, 1.0)).all())


def _part(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float, float]:
  """The mean of b - a, the interval's middle, its variance, its freedom."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape or a.ndim != 1 or not a.size:
    raise ValueError(
      f"a and b must be as long, and not empty: {a.shape}, {b.shape}"
    )
  d = b - a
  value = float(d.mean())
  if _is_binary(a, b):
    n = len(d) + 2
    middle = float(d.sum()) / n
    variance = ((float(np.square(d).sum()) + 1) / n - middle**2) / n
    return value, middle, variance, math.inf
  if len(d) == 1:
    return value, value, math.nan, math.nan
  return value, value, float(d.var(ddof=1)) / len(d), len(d) - 1


def _freedom(variances: np.ndarray, freedoms: np.ndarray) -> float:
  """Satterthwaite's degrees of freedom of a sum of variances."""
  rest = float(np.sum(variances**2 / freedoms))
  return float(variances.sum() ** 2) / rest if rest else math.inf


def _difference(
  value: float, middle: float, variance: float, freedom: float
) -> Difference:
  """Student's t interval around the middle, or the normal's."""
  if math.isnan(variance):
    return Difference(value, math.nan, math.nan, math.nan)
  if variance == 0:
    return Difference(value, value, value, float(value == 0))
  error = math.sqrt(variance)
  from scipy import stats

  half = float(stats.t.ppf((1 + scoring.CONFIDENCE) / 2, freedom)) * error
  return Difference(
    value,
    max(-1.0, middle - half),
    min(1.0, middle + half),
    float(2 * stats.t.sf(abs(middle) / error, freedom)),
  )
