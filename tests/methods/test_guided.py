"""Methods whose samples may begin with a part of a demonstration."""

import dataclasses
import functools
import math

import chex
import jax
import numpy as np
import pytest

from bilevel_jax import errors
from bilevel_jax.bilevel import problem
from bilevel_jax.methods import diagnostics, prefix_rft, terms, trapo, uft
from bilevel_jax.objectives import (
  policy_gradient,
  prefix_losses,
  token_weights,
)
from bilevel_jax.rollout import rounds
from tests.methods import conftest, sgd

GUIDED = ["prefix_rft", "progressive", "trapo", "uft"]
SOLUTIONS = np.array([100, 0, 37, 1])


def _progress(step=0, rewards=None, samples=8, seed=(0,)):
  rewards = np.zeros((4, 0)) if rewards is None else np.array(rewards, float)
  return rounds.Progress(
    step=step,
    samples=samples,
    rewards=rewards,
    scored=np.ones(rewards.shape, bool),
    solutions=SOLUTIONS,
    seed=seed,
  )


@pytest.mark.parametrize("name", GUIDED)
def test_without_given_tokens_a_guided_method_is_rl(world, name):
  method, grpo = world.method(name), world.method("grpo")
  batch = world.batch(grpo)
  expected, _ = sgd.run(grpo, world.start(grpo), batch)
  nowhere = np.zeros(world.rl.weights.shape, np.float32)
  batch = dataclasses.replace(
    batch, rl=dataclasses.replace(batch.rl, prefixed=nowhere)
  )
  actual, _ = sgd.run(method, world.start(method), batch)
  chex.assert_trees_all_close(actual.base, expected.base, atol=1e-7)
  groups = conftest.groups([[1, 0, 0], [0, 0, 0], [1, 1, 0]])
  host = world.host(method, groups)
  assert host.rl_asked["counted"] is None
  assert not host.rl_asked["count_from"].any()
  assert [batch.sft for batch in host.batches] == [None]
  np.testing.assert_array_equal(
    host.rl_asked["advantages"],
    conftest.advantages(groups.rewards, groups.scored)[0],
  )


@pytest.mark.parametrize(
  ("name", "options", "weight", "coefficient"),
  [
    ("trapo", {"bound": 0.15}, token_weights.trust_region(0.15), 1.0),
    ("trapo", {"bound": 1e-9}, token_weights.one, 1.0),
    ("trapo", {"bound": 1.0}, token_weights.by_probability, 1.0),
    ("progressive", {}, token_weights.one, 1.0),
    ("uft", {}, token_weights.one, 1e-3),
    ("uft", {"hint_weight": 0.0}, token_weights.one, 0.0),
  ],
)
def test_given_tokens_are_learned_as_demonstrations(
  world, name, options, weight, coefficient
):
  """TRAPO's bound towards 0 is SFT, at 1 it is DFT; UFT's is a little SFT."""
  method = world.method(name, **options)
  batch = world.batch(method)
  state, _ = sgd.run(method, world.start(method), batch)
  given = np.asarray(batch.rl.prefixed) > 0
  part = lambda keep: dataclasses.replace(
    batch.rl, weights=np.where(keep, batch.rl.weights, 0), prefixed=None
  )
  rl = problem.gradient(world.problem().lower)(world.base, None, part(~given))
  objective = terms.sft_objective(world.policy, chunk=64, token_weight=weight)
  sft = problem.gradient(objective)(world.base, None, part(given))
  expected = jax.tree.map(
    lambda x, r, s: x - 0.1 * (r + coefficient * s),
    world.base,
    rl.by_lower,
    sft.by_lower,
  )
  chex.assert_trees_all_close(state.base, expected, atol=1e-6)
  assert np.abs(sft.by_lower["table"]).max() > 1e-3


def test_all_of_a_prefix_reinforced_is_as_if_it_was_sampled(world):
  state, _ = sgd.step(world, "prefix_rft", top_share=1.0)
  expected, _ = sgd.step(world, "grpo")
  chex.assert_trees_all_close(state.base, expected.base, atol=1e-6)


def test_sure_tokens_of_a_prefix_teach_nothing(world):
  """What the default keeps, a loop over rows finds by the entropies."""
  method = world.method("prefix_rft")
  batch = world.batch(method)
  state, _ = sgd.run(method, world.start(method), batch)
  _, entropies = sgd.scores(world, world.base, world.rl)
  weights = np.array(batch.rl.weights)
  for row, given in enumerate(np.asarray(batch.rl.prefixed) > 0):
    begun = np.flatnonzero(given)
    kept = begun[np.argsort(-entropies[row, begun], kind="stable")]
    kept = kept[: math.ceil(0.2 * len(begun))]
    weights[row, np.setdiff1d(begun, kept)] = 0
  rl = problem.gradient(world.problem().lower)(
    world.base, None, dataclasses.replace(world.rl, weights=weights)
  )
  expected = jax.tree.map(lambda x, g: x - 0.1 * g, world.base, rl.by_lower)
  chex.assert_trees_all_close(state.base, expected, atol=1e-6)


def test_neither_sampler_nor_reference_has_a_say_on_given_tokens(world):
  """Nor do numbers that are logged: those tokens were not sampled."""
  objective = jax.jit(
    terms.rl_objective(
      world.policy,
      numbers=policy_gradient.PolicyGradient(kl_coef=1.0, importance_cap=2.0),
      temperature=1.0,
      chunk=64,
      prefix_loss=prefix_losses.likelihood(token_weights.one),
      ratio="sequence",
    )
  )
  batch = conftest.with_prefixes(world.rl)
  given = np.asarray(batch.prefixed) > 0
  seen = []
  for said in (0.0, -3.0):
    told = np.where(given, said, -1.0).astype(np.float32)
    changed = dataclasses.replace(
      batch, sampler_logprobs=told, ref_logprobs=told, old_logprobs=told
    )
    loss, aux = objective(world.base, None, changed)
    seen.append((loss, diagnostics.rollout_metrics(changed, aux)))
  chex.assert_trees_all_equal(*seen)
  assert np.isfinite(seen[0][0])


def test_uft_weighs_what_was_given_apart(world):
  for name in GUIDED:
    host = world.host(world.method(name))
    assert host.rl_asked["given_apart"] == (name == "uft")


def test_prefix_rft_gives_the_last_sample_less_and_less(world):
  guide = world.host(world.method("prefix_rft", total_updates=101)).guide
  given = guide(_progress(step=0))
  assert not given[:, :-1].any()
  np.testing.assert_array_equal(given[:, -1], np.floor(0.95 * SOLUTIONS))
  options = prefix_rft.Options()
  low = [prefix_rft.lowest_share(options, step, 101) for step in (0, 50, 100)]
  np.testing.assert_allclose(low, [0.95, 0.475, 0.0], atol=1e-12)
  # In the end any part of it, evenly.
  lengths = np.array(
    [guide(_progress(step=100, seed=(seed,)))[:, -1] for seed in range(400)]
  )
  np.testing.assert_allclose(lengths[:, 0].mean(), 47, atol=4)
  assert lengths.max() < 95
  again = guide(_progress(step=100, seed=(7,)))[:, -1]
  np.testing.assert_array_equal(lengths[7], again)


@pytest.mark.parametrize("normalise", ["group_mean", "group_std"])
def test_prefix_rft_compares_a_guided_sample_with_the_others(normalise):
  rule = functools.partial(
    policy_gradient.group_advantages, normalise=normalise
  )

  scored = np.ones((4, 4), bool)
  scored[3, 0] = False
  rewards = np.array([[0, 0, 0, 1], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1]])
  given = np.array([[0, 0, 0, 5], [0, 0, 0, 5], [0, 0, 0, 0], [0, 0, 0, 2]])
  groups = conftest.groups(rewards, prefix_lengths=given, scored=scored)
  advantages = prefix_rft.advantages_of(groups, rule)
  for q in range(4):
    others = [s for s in range(4) if scored[q, s] and not given[q, s]]
    everyone = [s for s in range(4) if scored[q, s]]
    for s in everyone:
      among = everyone if given[q, s] else others
      scale = np.std(rewards[q, among], ddof=1) + 1e-6
      scale = scale if normalise == "group_std" else 1.0
      centred = rewards[q, s] - np.mean(rewards[q, others])
      np.testing.assert_allclose(
        advantages[q, s], centred / scale, rtol=1e-4, atol=1e-6
      )
  assert advantages[3, 0] == 0


@pytest.mark.parametrize(
  ("normalise", "expected"), [("group_mean", -0.43), ("group_std", -0.83)]
)
def test_a_guided_sample_that_ends_wrong_is_unlearned(normalise, expected):
  """Where the paper's code has 0: its reward, in a group of its own."""
  groups = conftest.groups(
    [[1, 1, 1, 0, 0, 0, 0, 0]], prefix_lengths=[[0, 0, 0, 0, 0, 0, 0, 5]]
  )
  rule = functools.partial(
    policy_gradient.group_advantages, normalise=normalise
  )
  found = prefix_rft.advantages_of(groups, rule)[0, -1]
  np.testing.assert_allclose(found, expected, atol=5e-3)


def _guides(guide, rewards, samples=8):
  """The micro-groups that a guide makes of questions with these rewards."""
  given = np.zeros((len(rewards), 0), int)
  while (done := given.shape[1]) < samples:
    part = guide(
      rounds.Progress(
        step=0,
        samples=samples,
        rewards=np.array(rewards, float)[:, :done],
        scored=np.ones((len(rewards), done), bool),
        solutions=np.full(len(rewards), 10),
        seed=(done,),
      )
    )
    given = np.concatenate([given, part], axis=1)
  return given


def test_trapo_helps_a_question_while_its_samples_fail():
  guide = trapo.micro_groups(trapo.Options())
  given = _guides(
    guide,
    [
      [0, 0, 0, 0, 0, 0, 0, 0],  # all help
      [1, 1, 1, 1, 1, 1, 1, 1],  # none
      [1, 1, 0, 0, 0, 0, 0, 0],  # 2 of 4 are not below 0.5; 2 of 6 are
      [0, 0, 0, 0, 1, 1, 1, 1],  # helped once: 2 of 6, 3 of 7
      [1, 1, 1, 0, 1, 1, 1, 0],  # 5 of 6 are not below 0.7, 6 of 7 below 0.9
    ],
  )
  assert given.tolist() == [
    [0, 0, 0, 0, 2, 2, 5, 10],
    [0] * 8,
    [0, 0, 0, 0, 0, 0, 5, 10],
    [0, 0, 0, 0, 2, 2, 5, 10],
    [0, 0, 0, 0, 0, 0, 0, 10],
  ]


def test_the_codes_thresholds_of_trapo_are_counts_of_right_samples():
  guide = trapo.micro_groups(trapo.Options(thresholds=(-1.0, 0.5, 0.66, 1.0)))
  for right in range(9):
    rewards = np.arange(8) < right
    given = _guides(guide, [rewards])[0]
    helped = [
      rewards[:n].sum() < least for n, least in ((4, 2), (6, 4), (7, 7))
    ]
    np.testing.assert_array_equal(given[[4, 6, 7]] > 0, helped)


@pytest.mark.parametrize(
  ("samples", "sizes"), [(16, [8, 4, 2, 2]), (4, [2, 1, 1]), (2, [1, 1])]
)
def test_micro_groups_keep_their_ratio(samples, sizes):
  guide, sampled = trapo.micro_groups(trapo.Options()), []
  while sum(sampled) < samples:
    rewards = np.zeros((4, sum(sampled)))
    sampled.append(guide(_progress(rewards=rewards, samples=samples)).shape[1])
  assert sampled == sizes


def test_of_samples_that_begin_alike_trapo_learns_the_beginning_once():
  given = np.array([[0, 0, 2, 2, 5, 9], [0, 0, 0, 0, 5, 0], [3, 3, 3, 3, 3, 3]])
  assert trapo.last_of_alike(given).tolist() == [
    [False, False, False, True, True, True],
    [False, False, False, False, True, False],
    [False, False, False, False, False, True],
  ]


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("trapo", {"shares": (0.0, 1.0)}, "for each micro-group, got 4, 2, 4"),
    ("trapo", {"sizes": (4, 2, 2, 0)}, r"sizes must be at least 1 each, got"),
    ("gta", {"guess_end": ""}, "guess_end must not be empty"),
  ],
)
def test_settings_that_mean_nothing_are_refused(world, name, options, message):
  with pytest.raises(errors.ConfigError, match=message):
    world.method(name, **options)


def test_progressive_goes_from_whole_demonstrations_to_none(world):
  groups = conftest.groups(
    np.zeros((2, 3)), prefix_lengths=[[4, 4, 4], [0, 0, 0]]
  )
  host = world.host(world.method("progressive", total_updates=40), groups)
  for step, share in ((0, 1.0), (5, 0.75), (19, 0.05), (20, 0.0), (39, 0.0)):
    given = host.guide(_progress(step=step))
    expected = np.floor(share * SOLUTIONS + 1e-9)
    np.testing.assert_array_equal(given, np.tile(expected[:, None], 8))
  # One of those that begin alike counts from its start.
  np.testing.assert_array_equal(
    host.rl_asked["count_from"], [[4, 4, 0], [0, 0, 0]]
  )


def test_ufts_hints_shrink_along_a_cosine_and_end():
  options = uft.Options()
  chances = [uft.probability(options, step, 500) for step in (0, 150, 299, 300)]
  # T_hint 300 of 500, p = 0.05 + 0.45 (1 + cos(pi t / 300)), as in the paper.
  expected = 0.05 + 0.45 * (1 + math.cos(math.pi * 299 / 300))
  np.testing.assert_allclose(chances, [0.95, 0.5, expected, 0], atol=1e-12)
  guide = uft.hints(options, 500)
  for step, chance in ((0, 0.95), (150, 0.5), (300, 0.0)):
    sampled = np.array(
      [guide(_progress(step=step, seed=(seed,))) for seed in range(300)]
    )
    assert (sampled == sampled[..., :1]).all()  # the same for all samples
    pieces = sampled[:, 0, 0] * 6 / 100
    np.testing.assert_allclose(pieces.mean(), 5 * chance, atol=0.2)
    assert (sampled <= SOLUTIONS[:, None] * 5 // 6).all()


FAILED = conftest.groups(
  [[0, 0], [1, 0], [0, 0], [0, 0], [0, 0]],
  scored=np.array([[1, 1]] * 3 + [[0, 0], [1, 1]], bool),  # one not judged
  demonstrated=[True, True, False, True, True],
)


def test_relift_holds_back_the_questions_that_all_samples_failed(world):
  host = world.host(world.method("relift"), FAILED)
  assert host.memory == {"waiting": [10, 14]}
  assert host.logged == {"mix/demonstrated_questions": 0.8, "mix/waiting": 2.0}
  assert host.rl_asked == {"counted": None, "count_from": None}
  assert [batch.sft for batch in host.batches] == [None]


@pytest.mark.parametrize(
  ("first_out", "learned", "left"),
  [("oldest", [3, 1], [7, 10, 14]), ("newest", [10, 14], [3, 1, 7])],
)
def test_relift_ends_a_step_with_some_that_wait(
  world, first_out, learned, left
):
  """With at most one update of them; the others wait on."""
  host = world.host(
    world.method("relift", buffer=2, first_out=first_out),
    FAILED,
    memory={"waiting": [3, 1, 7]},
    updates=2,
  )
  kinds = [(batch.rl is None, batch.sft is None) for batch in host.batches]
  assert kinds == [(False, True), (False, True), (True, False)]
  assert host.sft_asked == [{"rows": 2, "ids": learned}]
  assert host.memory == {"waiting": left}
  assert host.logged["mix/waiting"] == 3.0


def test_relift_is_rl_and_then_sft_with_an_optimiser_of_its_own(world):
  method = world.method("relift", buffer=1, sft_learning_rate=0.03)
  by_rl, by_sft = world.host(method).batches
  state, _ = sgd.run(method, world.start(method), by_rl)
  expected, _ = sgd.step(world, "grpo")
  chex.assert_trees_all_close(state.base, expected.base, atol=1e-7)
  state, _ = sgd.run(method, world.start(method), by_sft)
  expected = sgd.descended(
    world.base, sgd.sft_gradient(world, world.base), rate=0.03
  )
  chex.assert_trees_all_close(state.base, expected, atol=1e-7)
