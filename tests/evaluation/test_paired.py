"""Paired tests against enumeration, scipy and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from bilevel_jax.evaluation import paired


def test_mcnemar_is_the_share_of_coin_throws_as_far_out():
  """All 2^5 ways in which five questions that one alone answered could fall."""
  a, b = np.array([1, 1, 0, 0, 0, 0, 0]), np.array([1, 0, 1, 1, 1, 1, 0])
  wins = [sum(throw) for throw in itertools.product((0, 1), repeat=5)]
  as_far = [abs(n - 2.5) >= abs(4 - 2.5) for n in wins]
  assert paired.mcnemar(a, b) == pytest.approx(np.mean(as_far))
  assert paired.mcnemar(b, a) == paired.mcnemar(a, b)
  assert paired.mcnemar(a, a) == 1


def test_mcnemar_takes_answers_that_are_right_or_wrong():
  with pytest.raises(ValueError, match="0 or 1"):
    paired.mcnemar(np.array([0.5]), np.array([1.0]))


@pytest.mark.parametrize("shape", [(1, 40), (6, 1)])
def test_one_seed_or_one_question_is_scipys_paired_t(shape):
  random = np.random.default_rng(0)
  a, b = random.random((2, *shape))
  expected = stats.ttest_rel(b.ravel(), a.ravel())
  got = paired.crossed(a, b)
  bounds = expected.confidence_interval()
  np.testing.assert_allclose(
    got,
    (np.mean(b - a), bounds.low, bounds.high, expected.pvalue),
    rtol=1e-12,
  )


@pytest.mark.parametrize(
  ("of_seeds", "of_questions"), [(0.1, 0.05), (0.02, 0.5), (0.0, 0.0)]
)
def test_the_interval_holds_the_truth_over_new_seeds_and_new_questions(
  of_seeds, of_questions
):
  """Neither of the two sources alone would: the first and last cases."""
  random, seeds, questions, held, trials = np.random.default_rng(0), 5, 60, 0, 0
  for _ in range(1500):
    d = (
      0.1
      + of_seeds * random.normal(size=(seeds, 1))
      + of_questions * random.normal(size=questions)
      + 0.3 * random.normal(size=(seeds, questions))
    )
    _, low, high, _ = paired.crossed(np.zeros_like(d), d)
    held += low <= 0.1 <= high
    trials += 1
  # Where neither source is there, the larger part is kept: it may be wide.
  assert 0.93 < held / trials < (0.97 if of_seeds else 0.995)


def test_equal_models_do_not_differ():
  same = np.ones((3, 4))
  assert paired.crossed(same, same) == (0, 0, 0, 1)
  assert math.isnan(paired.crossed(same[:1, :1], same[:1, :1]).p)


def test_holm_by_hand():
  """0.01 x 4, 0.02 x 3, max(0.06, 0.03 x 2), 0.04; the order is kept."""
  got = paired.holm([0.04, 0.01, math.nan, 0.03, 0.02])
  assert math.isnan(got.pop(2))
  np.testing.assert_allclose(got, [0.06, 0.04, 0.06, 0.06])
