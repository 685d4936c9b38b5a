"""Which rollouts and demonstrations hpt, luffy and shuffle learn from."""

import types

import numpy as np
import pytest

from bilevel_jax.methods import shuffle
from bilevel_jax.objectives import policy_gradient, weighting
from bilevel_jax.rollout import routing
from bilevel_jax.types import Scores

REWARDS = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [1, 1, 0]])
SCORED = np.ones(REWARDS.shape, bool)
SCORED[4, 2] = False
GROUPS = routing.Groups(
  rewards=REWARDS,
  correct=REWARDS > 0,
  scored=SCORED,
  demonstrated=np.array([True, True, True, False, False]),
  given=np.zeros((5, 3), int),
  truncated=np.zeros((5, 3), bool),
)


def _advantages(rewards, scored):
  return policy_gradient.group_advantages(
    rewards, scored, normalise="group_mean"
  )[0]


def test_hpt_gives_sft_the_questions_that_are_never_solved(world):
  route = world.method("hpt").route(GROUPS)
  np.testing.assert_array_equal(route.demonstrations, [1, 0, 0, 0, 0])
  np.testing.assert_array_equal(
    route.rollouts, np.array([0, 1, 1, 1, 1], bool)[:, None] & (REWARDS >= 0)
  )
  # One question of five: a fifth of the whole, four fifths for the others.
  np.testing.assert_allclose(route.coefficients, 0.2)
  np.testing.assert_allclose(
    route.advantages, 0.8 * _advantages(REWARDS, SCORED), rtol=1e-6
  )


def test_hpt_with_a_gate_below_zero_is_rl(world):
  route = world.method("hpt", hpt={"gate": -1.0}).route(GROUPS)
  assert route.rollouts.all()
  assert not route.demonstrations.any()
  np.testing.assert_array_equal(route.advantages, _advantages(REWARDS, SCORED))


def test_hpt_with_a_gate_of_one_is_sft_where_there_are_demonstrations(world):
  route = world.method("hpt", hpt={"gate": 1.0}).route(
    GROUPS._replace(demonstrated=np.ones(5, bool))
  )
  assert not route.rollouts.any()
  assert route.demonstrations.all()
  np.testing.assert_array_equal(route.coefficients, 1.0)


def test_luffy_counts_a_demonstration_as_one_more_sample(world):
  route = world.method("luffy").route(GROUPS)
  assert route.rollouts.all()
  rows = 5 * 3 - 1, 3  # samples that were scored, and demonstrations
  for q in range(5):
    group = list(REWARDS[q, SCORED[q]])
    group += [1.0] * int(GROUPS.demonstrated[q])
    for g in np.flatnonzero(SCORED[q]):
      expected = (REWARDS[q, g] - np.mean(group)) * rows[0] / sum(rows)
      np.testing.assert_allclose(route.advantages[q, g], expected, atol=1e-6)
    expected = (1 - np.mean(group)) * rows[1] / sum(rows)
    if GROUPS.demonstrated[q]:
      np.testing.assert_allclose(route.coefficients[q], expected, atol=1e-6)


def test_luffy_without_demonstrations_is_rl(world):
  route = world.method("luffy").route(
    GROUPS._replace(demonstrated=np.zeros(5, bool))
  )
  assert not route.demonstrations.any()
  np.testing.assert_array_equal(route.advantages, _advantages(REWARDS, SCORED))


EVEN = routing.Groups(
  rewards=np.random.default_rng(0).normal(size=(3, 4)),
  correct=np.zeros((3, 4), bool),
  scored=np.ones((3, 4), bool),
  demonstrated=np.zeros(3, bool),
  given=np.zeros((3, 4), int),
  truncated=np.zeros((3, 4), bool),
)


def test_shuffle_of_all_pairs_in_one_round_is_rl(world):
  options = {"kept_share": 1.0, "rounds": 1}
  route = world.method("shuffle", shuffle=options).route(EVEN)
  assert route.rollouts.all()
  np.testing.assert_allclose(
    route.advantages, _advantages(EVEN.rewards, EVEN.scored), rtol=1e-6
  )


def test_shuffle_keeps_the_most_contrasting_pairs():
  pairs = shuffle.contrasting(EVEN.rewards, share=0.5)
  expected = {
    (4 * q + np.argmax(row), 4 * q + np.argmin(row))
    for q, row in enumerate(EVEN.rewards)
  }
  assert {tuple(pair) for pair in pairs} == expected
  every = shuffle.contrasting(np.array([[2.0, 0.0, 3.0, 1.0]]), share=1.0)
  assert every.tolist() == [[2, 1], [0, 3]]  # best with worst, then inwards


def test_shuffle_draws_pairs_by_their_size_as_often_as_there_are_pairs():
  sizes = np.array([3.0, 1.0, 0.0, 0.0])
  random = np.random.default_rng(0)
  drawn = np.array(
    [
      shuffle.draw(sizes, rounds=4, power=1.0, random=random)
      for _ in range(500)
    ]
  )
  assert (drawn.sum(axis=1) == 4).all()
  np.testing.assert_allclose(drawn.mean(axis=0), [3, 1, 0, 0], atol=0.1)


def test_shuffle_weighs_rows_as_if_they_were_repeated(world):
  """The mean over counted rows is that over the rows as they were drawn."""
  route = world.method("shuffle", shuffle={"rounds": 3}).route(EVEN)
  advantages = _advantages(EVEN.rewards, EVEN.scored)
  counts = np.where(route.rollouts, route.advantages / advantages, 0)
  np.testing.assert_allclose(counts[route.rollouts].mean(), 1.0, rtol=1e-5)
  times = counts / counts[route.rollouts].min()
  np.testing.assert_allclose(times, np.round(times), atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
def test_each_update_gets_its_questions_demonstrations(world, parts):
  """Every demonstration once a pass, with its coefficient, on its tokens."""
  demonstrated = np.array([1, 1, 0, 1, 1], bool)
  pair = lambda q: (np.full(2, 3, np.int32), np.full(q + 1, q, np.int32))
  solutions = types.SimpleNamespace(
    of=lambda questions: [
      pair(q) if demonstrated[q] else None for q in questions
    ]
  )
  answered = types.SimpleNamespace(
    scores=Scores(
      rewards=REWARDS.ravel(),
      scored=SCORED.ravel(),
      correct=GROUPS.correct.ravel(),
    ),
    questions=list(np.repeat(np.arange(5), 3)),
    rollout=types.SimpleNamespace(
      given=np.zeros(15, int),
      truncated=np.zeros(15, bool),
      requests=types.SimpleNamespace(samples_per_prompt=3),
    ),
  )
  router = lambda groups: routing.Route(
    rollouts=REWARDS > 0,
    advantages=REWARDS,
    demonstrations=np.array([1, 0, 1, 0, 1], bool),
    coefficients=np.array([2.0, 9.0, 9.0, 9.0, 3.0]),
  )
  routed = routing.follow(router, answered, solutions, parts=parts)
  assert routed.metrics() == {
    "mix/demonstrated_questions": 0.8,
    "mix/sft_questions": 0.4,
  }
  np.testing.assert_array_equal(
    routed.scores.scored, (SCORED & (REWARDS > 0)).ravel()
  )
  weights = {}
  for number in range(parts):
    batch = routed.demonstrations(number, weighting.sequence_mean)
    again = routed.demonstrations(number + parts, weighting.sequence_mean)
    np.testing.assert_array_equal(batch.weights, again.weights)
    for tokens, row in zip(batch.tokens, batch.weights, strict=True):
      if row.any():
        assert int(tokens[2]) not in weights
        weights[int(tokens[2])] = row.sum()
        assert set(tokens[row > 0]) == {tokens[2]}
  # Of one update they share the batch; of two, each has its own.
  assert weights == pytest.approx({0: 2.0 / (3 - parts), 4: 3.0 / (3 - parts)})
