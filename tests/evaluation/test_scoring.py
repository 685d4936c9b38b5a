"""Intervals against published numbers, enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from bilevel_jax.evaluation import scoring


@pytest.mark.parametrize(
  ("successes", "n"), [(0, 10), (1, 10), (7, 30), (250, 500), (500, 500)]
)
def test_wilson_is_scipys(successes, n):
  expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
  got = scoring.wilson_interval(successes, n)
  np.testing.assert_allclose(got, (expected.low, expected.high), atol=1e-12)


def test_wilson_by_hand():
  """81 of 263 in Newcombe (1998), table I: 0.2553 to 0.3662."""
  low, high = scoring.wilson_interval(81, 263)
  assert round(low, 4) == 0.2553
  assert round(high, 4) == 0.3662


def test_wilson_needs_answers():
  with pytest.raises(ValueError, match="3 of 0"):
    scoring.wilson_interval(3, 0)


@pytest.mark.parametrize("truth", [0.1, 0.35, 0.9])
def test_wilson_holds_the_truth_as_often_as_it_says(truth):
  n = 200
  weights = stats.binom.pmf(np.arange(n + 1), n, truth)
  intervals = [scoring.wilson_interval(k, n) for k in range(n + 1)]
  holds = [low <= truth <= high for low, high in intervals]
  assert 0.93 < np.dot(weights, holds) < 0.97


def test_one_answer_a_question_has_wilsons_interval():
  scores = np.array([1, 0, 1, 1, 0])
  assert scoring.accuracy(scores) == (0.6, *scoring.wilson_interval(3, 5))


def test_answers_to_one_question_are_not_independent():
  """Eight equal answers to each question tell no more than one."""
  once = np.random.default_rng(0).random(100) < 0.4
  repeated = np.repeat(once[:, None], 8, axis=1)
  assert scoring.accuracy(repeated) == scoring.accuracy(once)


def test_mean_of_several_answers_holds_the_truth_as_often_as_it_says():
  random, held = np.random.default_rng(0), 0
  for _ in range(300):
    chance = random.beta(1, 2, size=100)  # mean 1/3
    scores = random.random((100, 8)) < chance[:, None]
    _, low, high = scoring.accuracy(scores)
    held += low <= 1 / 3 <= high
  assert 0.92 < held / 300 < 0.98


def test_mean_of_benchmarks_by_hand():
  """Distances 3 and 4 to one side make 5, over two benchmarks."""
  got = scoring.mean(
    [scoring.Estimate(0.5, 0.2, 0.6), scoring.Estimate(0.7, 0.3, 0.7)]
  )
  np.testing.assert_allclose(got, (0.6, 0.6 - 0.25, 0.6 + 0.05))


def test_mean_of_benchmarks_holds_the_truth_as_often_as_it_says():
  """The paper's five, of a weak model: 30 and 40 questions weigh as 675."""
  random, held, trials = np.random.default_rng(0), 0, 2000
  benchmarks = {500: 0.5, 272: 0.15, 675: 0.2, 30: 0.05, 40: 0.25}
  for _ in range(trials):
    _, low, high = scoring.mean(
      [
        scoring.accuracy(random.random(n) < chance)
        for n, chance in benchmarks.items()
      ]
    )
    held += low <= 0.23 <= high
  assert 0.93 < held / trials < 0.97


def test_bootstrap_agrees_with_the_normal_interval_on_many_values():
  values = np.random.default_rng(3).random(2000)
  got = scoring.bootstrap(values)
  error = 1.96 * values.std(ddof=1) / math.sqrt(2000)
  np.testing.assert_allclose(got.low, values.mean() - error, atol=1e-3)
  np.testing.assert_allclose(got.high, values.mean() + error, atol=1e-3)
  assert got == scoring.bootstrap(values)


def test_bootstrap_of_equal_values_is_that_value():
  assert scoring.bootstrap(np.full(5, 0.25)) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("n", [1, 4, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n):
  for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
    answers = [1] * correct + [0] * (n - correct)
    subsets = list(itertools.combinations(answers, k))
    expected = sum(map(any, subsets)) / len(subsets)
    got = scoring.pass_at_k(n, correct, k)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_pass_at_k_of_many_questions_at_once():
  correct = np.array([0, 3, 16])
  expected = 1 - np.array([1, math.comb(13, 8) / math.comb(16, 8), 0])
  np.testing.assert_allclose(
    scoring.pass_at_k(16, correct, 8), expected, atol=1e-12
  )


def test_pass_at_k_needs_k_answers():
  with pytest.raises(ValueError, match="k 5, n 4"):
    scoring.pass_at_k(4, 1, 5)


@pytest.mark.parametrize(
  ("answers", "expected"),
  [(["7", "7", "3"], 1.0), (["3", "3", "7"], 0.0), (["3", "7"], 0.5)],
)
def test_majority_shares_ties(answers, expected):
  assert scoring.majority(answers, "7") == expected
