"""Which rollouts and demonstrations methods that route learn from."""

import numpy as np
import pytest

from bilevel_jax.methods import routing, shuffle
from bilevel_jax.objectives import weighting
from bilevel_jax.rollout import assemble
from tests.methods import conftest

REWARDS = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [1, 1, 0]])
SCORED = np.ones(REWARDS.shape, bool)
SCORED[4, 2] = False
# Question i has the demonstration 10 + i.
GROUPS = conftest.groups(
  REWARDS, scored=SCORED, demonstrated=[True, True, True, False, False]
)


def _advantages(rewards, scored):
  return conftest.advantages(rewards, scored)[0]


def _demonstrated(*questions):
  return conftest.groups(
    REWARDS, scored=SCORED, demonstrated=np.isin(np.arange(5), questions)
  )


def test_hpt_gives_sft_the_questions_that_are_never_solved(world):
  host = world.host(world.method("hpt"), GROUPS)
  (asked,) = host.sft_asked
  assert asked["ids"] == [10]
  np.testing.assert_array_equal(
    host.rl_asked["counted"],
    np.array([0, 1, 1, 1, 1], bool)[:, None] & (REWARDS >= 0),
  )
  # One question of five: a fifth of the whole, four fifths for the others.
  np.testing.assert_allclose(asked["coefficients"], [0.2])
  np.testing.assert_allclose(
    host.rl_asked["advantages"], 0.8 * _advantages(REWARDS, SCORED), rtol=1e-6
  )


def test_hpt_with_a_gate_below_zero_is_rl(world):
  host = world.host(world.method("hpt", gate=-1.0), GROUPS)
  assert host.rl_asked["counted"].all()
  assert [asked["ids"] for asked in host.sft_asked] == [[]]
  np.testing.assert_array_equal(
    host.rl_asked["advantages"], _advantages(REWARDS, SCORED)
  )


def test_hpt_with_a_gate_of_one_is_sft_where_there_are_demonstrations(world):
  host = world.host(world.method("hpt", gate=1.0), _demonstrated(*range(5)))
  (asked,) = host.sft_asked
  assert not host.rl_asked["counted"].any()
  assert asked["ids"] == [10, 11, 12, 13, 14]
  np.testing.assert_array_equal(asked["coefficients"], 1.0)


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("hpt", {}),
    ("hpt", {"gate": 0.5}),
    ("interleaved", {}),
    ("relift", {"buffer": 1}),
    ("staged", {"sft_share": 0.0}),
  ],
)
def test_a_question_that_could_not_be_scored_is_as_if_it_was_not_asked(
  world, name, options
):
  """None of its samples says that it is solved, or that it is not."""
  rewards = np.concatenate([REWARDS, np.zeros((1, 3))])
  scored = np.concatenate([SCORED, np.zeros((1, 3), bool)])
  more = conftest.groups(
    rewards, scored=scored, demonstrated=[*GROUPS.demonstrated, True]
  )
  method = world.method(name, **options)
  host, expected = world.host(method, more), world.host(method, GROUPS)
  assert [asked["ids"] for asked in host.sft_asked] == [
    asked["ids"] for asked in expected.sft_asked
  ]
  # Those that are learned from are counted with what they count without it.
  for asked, as_before in zip(host.sft_asked, expected.sft_asked, strict=True):
    if asked.get("coefficients") is not None:
      np.testing.assert_allclose(
        asked["coefficients"], as_before["coefficients"], rtol=1e-6
      )
  for what, values in expected.rl_asked.items():
    if isinstance(values, np.ndarray):
      np.testing.assert_array_equal(host.rl_asked[what][:5], values)


def test_shuffle_counts_no_sample_that_could_not_be_scored(world):
  """Of a group of two the pair is all there is, scored or not."""
  scored = np.array([[True, True], [True, False], [True, True]])
  rewards = np.array([[1.0, 0], [1, 0], [0, 1]])
  method = world.method("shuffle", kept_share=1.0, rounds=1)
  asked = world.host(method, conftest.groups(rewards, scored=scored)).rl_asked
  np.testing.assert_array_equal(asked["counted"], scored)


def test_luffy_counts_a_demonstration_as_one_more_sample(world):
  host = world.host(world.method("luffy"), GROUPS)
  (asked,) = host.sft_asked
  assert host.rl_asked["counted"] is None
  assert asked["ids"] == [10, 11, 12]
  rows = 5 * 3 - 1, 3  # samples that were scored, and demonstrations
  for q in range(5):
    group = list(REWARDS[q, SCORED[q]])
    group += [1.0] * int(GROUPS.demonstrated[q])
    for g in np.flatnonzero(SCORED[q]):
      expected = (REWARDS[q, g] - np.mean(group)) * rows[0] / sum(rows)
      np.testing.assert_allclose(
        host.rl_asked["advantages"][q, g], expected, atol=1e-6
      )
    expected = (1 - np.mean(group)) * rows[1] / sum(rows)
    if GROUPS.demonstrated[q]:
      np.testing.assert_allclose(asked["coefficients"][q], expected, atol=1e-6)


def test_luffy_without_demonstrations_is_rl(world):
  host = world.host(world.method("luffy"), _demonstrated())
  assert [asked["ids"] for asked in host.sft_asked] == [[]]
  np.testing.assert_array_equal(
    host.rl_asked["advantages"], _advantages(REWARDS, SCORED)
  )


# Tokens of samples and of demonstrations.
DRAWN = np.array([[3, 5, 2], [8, 1, 1], [4, 4, 4], [6, 2, 7], [9, 9, 6]])
SOLUTIONS = [14, 20, 8]
LONGEST = {"rollout.max_new_tokens": 16, "data.max_demonstration_tokens": 40}


def _token_weights(world, name, weightings, scored=SCORED):
  """[rows] of each sample and of each demonstration that is learned from.

  What a token of it weighs in the update, its advantage included.
  """
  groups = GROUPS._replace(
    scored=scored,
    lengths=DRAWN * scored,
    demonstrations=[
      d and d._replace(solution=np.zeros(SOLUTIONS[q], np.int32))
      for q, d in enumerate(GROUPS.demonstrations)
    ],
  )
  settings = {f"{part}.weighting": how for part, how in weightings.items()}
  host = world.host(world.method(name, settings=LONGEST | settings), groups)
  (asked,) = host.sft_asked
  counted = scored & (scored if (c := host.rl_asked["counted"]) is None else c)
  own = [SOLUTIONS[number - 10] for number in asked["ids"]]

  def per_token(part, lengths, longest):
    mask = np.float32(np.arange(24) < np.reshape(lengths, (-1, 1)))
    weights = weighting.build(weightings[part], LONGEST[longest])(mask)
    return weights.max(axis=1)

  rl = per_token("rl", DRAWN * counted, "rollout.max_new_tokens")
  sft = per_token("sft", own, "data.max_demonstration_tokens")
  factors = asked["coefficients"]
  if factors is None:
    factors = asked["group_advantages"]
  rl = rl.reshape(DRAWN.shape) * host.rl_asked["advantages"]
  return rl, sft * factors[: len(own)]


@pytest.mark.parametrize(
  ("weightings", "token"),
  [
    # Every token of the step counts the same: one over all of them.
    ({"rl": "token_mean", "sft": "token_mean"}, lambda n: 1 / (65 + 42)),
    # The papers' code: the sum over the longest completion; 17 rows here.
    ({"rl": "constant", "sft": "constant"}, lambda n: 1 / (17 * 16)),
    ({"rl": "constant", "sft": "token_mean"}, lambda n: 1 / (17 * 16)),
    ({"rl": "sequence_mean", "sft": "sequence_mean"}, lambda n: 1 / (17 * n)),
  ],
)
@pytest.mark.parametrize("name", ["luffy", "srft"])
def test_a_token_of_a_demonstration_weighs_what_one_of_a_sample_does(
  world, name, weightings, token
):
  rl, sft = _token_weights(world, name, weightings)
  last = np.ones((5, 1))
  advantages = _advantages(
    np.concatenate([REWARDS, last], axis=1),
    np.concatenate([SCORED, GROUPS.demonstrated[:, None]], axis=1),
  )
  own = advantages[:, :-1] if name == "luffy" else np.sign(REWARDS - 0.5)
  expected = token(DRAWN) * own * SCORED
  np.testing.assert_allclose(rl, expected, rtol=1e-5)
  expected = token(np.array(SOLUTIONS)) * advantages[:3, -1]
  np.testing.assert_allclose(sft, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("weightings", "sample"),
  [
    # Dr. GRPO's sum over the longest completion, beside a token mean.
    ({"rl": "constant", "sft": "token_mean"}, lambda n: 1 / (5 * 3 * 16)),
    # A fifth for each of the five questions.
    ({"rl": "sequence_mean", "sft": "sequence_mean"}, lambda n: 1 / (15 * n)),
  ],
)
def test_hpt_shares_the_step_among_its_questions(world, weightings, sample):
  every = np.ones(SCORED.shape, bool)
  rl, sft = _token_weights(world, "hpt", weightings, scored=every)
  expected = sample(DRAWN) * _advantages(REWARDS, every)
  np.testing.assert_allclose(rl[1:], expected[1:], rtol=1e-5)
  np.testing.assert_allclose(sft, [1 / 5 / SOLUTIONS[0]], rtol=1e-6)


EVEN = conftest.groups(
  np.random.default_rng(0).normal(size=(3, 4)), demonstrated=[False] * 3
)


def test_shuffle_of_all_pairs_in_one_round_is_rl(world):
  host = world.host(world.method("shuffle", kept_share=1.0, rounds=1), EVEN)
  assert host.rl_asked["counted"].all()
  assert [batch.sft for batch in host.batches] == [None]
  np.testing.assert_allclose(
    host.rl_asked["advantages"],
    _advantages(EVEN.rewards, EVEN.scored),
    rtol=1e-6,
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
  sampled = np.array(
    [
      shuffle.draw(sizes, rounds=4, power=1.0, random=random)
      for _ in range(500)
    ]
  )
  assert (sampled.sum(axis=1) == 4).all()
  np.testing.assert_allclose(sampled.mean(axis=0), [3, 1, 0, 0], atol=0.1)


@pytest.mark.parametrize(("pairs", "rounds"), [(3, 8), (20, 8), (8, 8)])
def test_shuffle_draws_as_many_pairs_as_there_are(pairs, rounds):
  random = np.random.default_rng(1)
  sampled = shuffle.draw(
    np.ones(pairs), rounds=rounds, power=1.0, random=random
  )
  assert sampled.sum() == pairs


def test_shuffle_weighs_rows_as_if_they_were_repeated(world):
  """The mean over counted rows is that over the rows as they were sampled."""
  asked = world.host(world.method("shuffle", rounds=3), EVEN).rl_asked
  advantages = _advantages(EVEN.rewards, EVEN.scored)
  sampled = asked["counted"]
  counts = np.where(sampled, asked["advantages"] / advantages, 0)
  np.testing.assert_allclose(counts[sampled].mean(), 1.0, rtol=1e-5)
  times = counts / counts[sampled].min()
  np.testing.assert_allclose(times, np.round(times), atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
def test_each_update_gets_its_questions_demonstrations(world, parts):
  """Every demonstration once a pass, with its coefficient, on its tokens."""
  groups = _demonstrated(0, 1, 3, 4)
  groups = groups._replace(
    demonstrations=[
      d and d._replace(prompt=np.full(2, 3), solution=np.full(q + 1, q))
      for q, d in enumerate(groups.demonstrations)
    ]
  )
  router = lambda groups, host: routing.Route(
    rollouts=REWARDS > 0,
    advantages=REWARDS,
    demonstrations=np.array([1, 0, 1, 0, 1], bool),
    coefficients=np.array([2.0, 9.0, 9.0, 9.0, 3.0]),
  )
  method = world.method("mixed")._replace(batches=routing.routed(router))
  host = world.host(method, groups, updates=2 * parts, parts=parts)
  assert host.logged == {
    "mix/demonstrated_questions": 0.8,
    "mix/sft_questions": 0.4,
  }
  np.testing.assert_array_equal(host.rl_asked["counted"], REWARDS > 0)
  np.testing.assert_array_equal(host.rl_asked["advantages"], REWARDS)
  assert len(host.sft_asked) == 2 * parts

  def made(asked):
    own = {d.id: d for d in groups.demonstrations if d is not None}
    return assemble.demonstration_batch(
      [own[i] for i in asked["ids"]],
      weighting.sequence_mean,
      rows=asked["rows"],
      coefficients=asked["coefficients"],
      group_advantages=asked["group_advantages"],
    )

  weights = {}
  for number in range(parts):
    batch = made(host.sft_asked[number])
    again = made(host.sft_asked[number + parts])
    np.testing.assert_array_equal(batch.weights, again.weights)
    for tokens, row in zip(batch.tokens, batch.weights, strict=True):
      if row.any():
        assert int(tokens[2]) not in weights
        weights[int(tokens[2])] = row.sum()
        assert set(tokens[row > 0]) == {tokens[2]}
  # Of one update they share the batch; of two, each has its own.
  assert weights == pytest.approx({0: 2.0 / (3 - parts), 4: 3.0 / (3 - parts)})
