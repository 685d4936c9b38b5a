"""Paired tests against enumeration, scipy and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from bilevel_jax.evaluation import paired, scoring


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


def test_difference_by_question_by_hand():
  """Pairs (b, c) = (12, 5) of 50: d~ = 7/52, v~ = 18/52 - d~^2."""
  a = np.array([1] * 5 + [0] * 12 + [1] * 20 + [0] * 13)
  b = np.array([0] * 5 + [1] * 12 + [1] * 20 + [0] * 13)
  got = paired.by_question(a, b)
  middle = 7 / 52
  half = 1.959963984540054 * math.sqrt((18 / 52 - middle**2) / 52)
  np.testing.assert_allclose(got[:3], (7 / 50, middle - half, middle + half))
  assert got.p == paired.mcnemar(a, b)


def test_difference_by_question_has_a_width_when_nothing_differs():
  same = np.ones(30)
  value, low, high, p = paired.by_question(same, same)
  assert (value, p) == (0, 1)
  assert low < 0 < high


@pytest.mark.parametrize(("gain", "loss"), [(0.2, 0.1), (0.06, 0.03)])
def test_difference_by_question_holds_the_truth_as_often_as_it_says(gain, loss):
  random, held, trials = np.random.default_rng(1), 0, 2000
  for _ in range(trials):
    kind = random.random(150)
    b = (kind < gain) | (kind > 0.6)
    a = ((kind >= gain) & (kind < gain + loss)) | (kind > 0.6)
    _, low, high, _ = paired.by_question(a, b)
    held += low <= gain - loss <= high
  assert 0.93 < held / trials < 0.975


def test_pairing_is_narrower_than_two_separate_intervals():
  random = np.random.default_rng(2)
  a = random.random(500) < 0.5
  b = a ^ (random.random(500) < 0.05)
  _, low, high, _ = paired.by_question(a, b)
  separate = scoring.accuracy(b)
  assert high - low < separate.high - separate.low


def test_difference_by_question_needs_pairs():
  with pytest.raises(ValueError, match=r"\(3,\), \(2,\)"):
    paired.by_question(np.zeros(3), np.zeros(2))


def test_mean_of_one_benchmark_is_its_difference():
  a, b = np.random.default_rng(3).random((2, 30))
  np.testing.assert_allclose(paired.mean_of([(a, b)]), paired.by_question(a, b))


def test_mean_of_one_benchmark_of_single_answers_is_its_difference():
  a, b = np.array([[0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 1]])
  np.testing.assert_allclose(
    paired.mean_of([(a, b)])[:3], paired.by_question(a, b)[:3]
  )


@pytest.mark.parametrize("samples", [1, 8])
def test_mean_of_differences_holds_the_truth_as_often_as_it_says(samples):
  """The paper's five, two models that agree on most questions."""
  random, held, trials = np.random.default_rng(4), 0, 1000
  benchmarks = {500: 0.5, 272: 0.15, 675: 0.2, 30: 0.05, 40: 0.25}
  for _ in range(trials):
    pairs = []
    for n, chance in benchmarks.items():
      strength = random.beta(chance, 1 - chance, size=(n, 1))
      gain = 0.1 * (1 - strength)  # mean 0.1 (1 - chance)
      answers = random.random((2, n, samples)) < [strength, strength + gain]
      pairs.append(tuple(answers.mean(axis=2)))
    _, low, high, _ = paired.mean_of(pairs)
    held += low <= 0.1 * (1 - 0.23) <= high
  assert 0.93 < held / trials < 0.97


def test_one_question_of_several_answers_tells_nothing():
  got = paired.by_question(np.array([0.25]), np.array([0.5]))
  assert got.value == 0.25
  assert math.isnan(got.low)
  assert math.isnan(got.p)


@pytest.mark.parametrize("shape", [(1, 40), (6, 1)])
def test_one_seed_or_one_question_is_scipys_paired_t(shape):
  random = np.random.default_rng(0)
  a, b = random.random((2, *shape))
  expected = stats.ttest_rel(b.ravel(), a.ravel())
  bounds = expected.confidence_interval()
  for got in (paired.crossed(a, b), paired.by_question(a.ravel(), b.ravel())):
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


def test_the_interval_over_seeds_and_questions_by_hand():
  """v_s = v_q = 0.0004, v_e = 0.000025, two degrees of freedom."""
  d = np.array([[0.10, 0.05], [0.05, 0.02]])
  value, low, high, _ = paired.crossed(np.zeros((2, 2)), d)
  half = 4.302652729911275 * math.sqrt(2 * 0.0004 - 0.000025)
  np.testing.assert_allclose(
    (value, low, high), (0.055, 0.055 - half, 0.055 + half)
  )


def test_a_difference_of_accuracies_lies_between_minus_one_and_one():
  a, b = np.array([[0.0], [0.0]]), np.array([[1.0], [0.5]])
  assert paired.crossed(a, b).high == 1
  assert paired.crossed(b, a).low == -1


def test_equal_models_do_not_differ():
  same = np.ones((3, 4))
  assert paired.crossed(same, same) == (0, 0, 0, 1)
  assert math.isnan(paired.crossed(same[:1, :1], same[:1, :1]).p)


def test_holm_by_hand():
  """0.01 x 4, 0.02 x 3, max(0.06, 0.03 x 2), 0.04; the order is kept."""
  got = paired.holm([0.04, 0.01, math.nan, 0.03, 0.02])
  assert math.isnan(got.pop(2))
  np.testing.assert_allclose(got, [0.06, 0.04, 0.06, 0.06])
