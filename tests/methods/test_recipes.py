"""Entropy weights, teachers, preferences and stages: limits and identities."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import errors
from bilevel_jax.methods import staged, terms
from bilevel_jax.objectives import continuation, policy_gradient, preferences
from tests.methods import conftest, sgd

# SRFT


@pytest.mark.parametrize("exponent", ["paper", "code"])
def test_srft_descends_its_four_terms(world, exponent):
  """The losses whose coefficients they are, with entropies held still."""
  sign = {"paper": -1, "code": 1}[exponent]
  after, _ = sgd.step(world, "srft", sft_exponent=exponent)

  def entropy_of_rows(batch):
    _, entropies = sgd.scores(world, world.base, batch)
    counted = batch.weights > 0
    rows = (entropies * counted).sum(1) / counted.sum(1).clip(min=1)
    return np.asarray(rows)[:, None]

  h_sft, h_rl = entropy_of_rows(world.sft), entropy_of_rows(world.rl)

  def loss(base):
    sft, rl = (sgd.scores(world, base, b)[0] for b in (world.sft, world.rl))
    imitation = -0.5 * np.exp(sign * h_sft) * sft
    unclipped = -world.sft.group_advantages * jnp.exp(sft)
    advantages = world.rl.advantages
    own = -advantages * np.where(advantages > 0, 0.1 * np.exp(h_rl), 1) * rl
    return jnp.sum(world.sft.weights * (imitation + unclipped)) + jnp.sum(
      world.rl.weights * own
    )

  chex.assert_trees_all_close(
    sgd.moved(world.base, after.base),
    sgd.gradient(loss, world.base),
    atol=2e-6,
  )


def test_srft_puts_demonstrations_into_groups_and_samples_at_plus_minus_one(
  world,
):
  host, luffys = (world.host(world.method(name)) for name in ("srft", "luffy"))
  (asked,), (expected,) = host.sft_asked, luffys.sft_asked
  np.testing.assert_allclose(
    asked["group_advantages"], expected["coefficients"]
  )
  # 11 scored samples and 2 demonstrations: every row counts the same.
  signs = np.where(conftest.GROUPS.correct, 1, -1)
  np.testing.assert_allclose(
    host.rl_asked["advantages"], signs * 11 / 13, rtol=1e-6
  )
  assert host.rl_asked["counted"] is None
  assert asked["ids"] == [10, 11]  # the questions that have one
  assert asked["coefficients"] is None


def test_entropies_are_computed_only_where_they_are_asked_for(world):
  given = []

  def context(logprobs, entropies, batch):
    given.append(entropies)
    return jnp.ones_like(logprobs)

  for asked in (False, True):
    objective = terms.sft_objective(
      world.policy, chunk=64, context=context, with_entropy=asked
    )
    objective(world.base, None, world.sft)
  assert not given[0].any()
  np.testing.assert_allclose(
    given[1], sgd.scores(world, world.base, world.sft)[1], rtol=1e-6
  )


# KDRL


@pytest.mark.parametrize("estimate", ["k2", "k3"])
@pytest.mark.parametrize("listens", ["all", "wrong", "unsolved"])
def test_a_shift_of_the_advantage_has_the_gradient_of_the_kl(
  world, estimate, listens
):
  """RL plus beta sum(weights k2(d)), by differentiating that loss itself."""
  beta = 0.5
  options = {"start": beta, "end": beta, "listens": listens}
  # A first question without a right answer, a second one with some.
  correct = np.array([0, 0, 0, 0, 1, 0, 1, 0], np.float32)
  accuracy = np.array([0] * 4 + [0.5] * 4, np.float32)
  world.rl = dataclasses.replace(world.rl, correct=correct, accuracy=accuracy)
  after, metrics = sgd.step(world, "kdrl", estimate=estimate, **options)
  rows = {
    "all": np.ones(8),
    "wrong": 1 - correct,
    "unsolved": np.float32(accuracy == 0),
  }[listens]

  def loss(base):
    logprobs, _ = sgd.scores(world, base, world.rl)
    teacher = world.rl.expert_logprobs
    kl = (teacher - logprobs) ** 2 / 2
    if estimate == "k3":
      kl = policy_gradient.kl_k3(logprobs, teacher)
    rl = world.problem().lower(base, None, world.rl)[0]
    return rl + beta * jnp.sum(world.rl.weights * rows[:, None] * kl)

  chex.assert_trees_all_close(
    sgd.moved(world.base, after.base),
    sgd.gradient(loss, world.base),
    atol=2e-6,
  )
  np.testing.assert_allclose(metrics["mix/taught_share"], rows.mean())


def test_the_teachers_weight_falls_to_its_end(world):
  method = world.method("kdrl", start=0.5, end=0.25, decay=0.1)
  state, update, seen = world.start(method), jax.jit(method.update), []
  for _ in range(4):
    state, metrics, _ = update(state, world.batch(method))
    seen.append(float(metrics["mix/teacher_weight"]))
  np.testing.assert_allclose(seen, [0.5, 0.4, 0.3, 0.25], rtol=1e-6)


def test_a_teacher_without_weight_is_rl(world):
  after, _ = sgd.step(world, "kdrl", start=0.0, end=0.0)
  expected, _ = sgd.step(world, "grpo")
  chex.assert_trees_all_close(after.base, expected.base, atol=1e-7)


# PEAR


def test_pear_without_ratios_and_discount_is_the_cold_start(world):
  same = {"lowest_ratio": 0.0, "highest_ratio": 0.0, "gamma": 1.0}
  after, _ = sgd.step(world, "pear", **same)
  expected, _ = sgd.step(world, "sft")
  chex.assert_trees_all_close(after.base, expected.base, atol=1e-7)
  reinforced, _ = sgd.step(world, "pear", step=5, **same)
  expected, _ = sgd.step(world, "grpo")
  chex.assert_trees_all_close(reinforced.base, expected.base, atol=1e-7)


def test_pear_holds_its_weights_still(world):
  """SFT's loss with weights that were computed before it was descended."""
  after, _ = sgd.step(world, "pear", form="block")
  logprobs, _ = sgd.scores(world, world.base, world.sft)
  weights = continuation.weights(
    logprobs,
    world.sft.expert_logprobs,
    world.sft.weights,
    world.sft.segment_ids,
    form="block",
    gamma=0.999,
    block=4,
    ratio_bounds=(-0.08, 0.3),
    bounds=(-10.0, 5.0),
  )
  loss = lambda base: (
    -jnp.sum(
      world.sft.weights * weights * sgd.scores(world, base, world.sft)[0]
    )
  )
  chex.assert_trees_all_close(
    sgd.moved(world.base, after.base),
    sgd.gradient(loss, world.base),
    atol=2e-6,
  )
  assert float(jnp.std(weights[world.sft.weights > 0])) > 0.1


# Implicit reward


def test_sft_is_slow_before_preferences(world):
  after, _ = sgd.step(world, "implicit_reward")
  expected, _ = sgd.step(world, "sft")
  chex.assert_trees_all_close(
    sgd.moved(world.base, after.base),
    jax.tree.map(lambda g: 0.25 * g, sgd.moved(world.base, expected.base)),
    atol=2e-6,
  )


def test_the_second_stage_descends_dpo(world):
  """The loss of whole sequences, pair by pair, by differentiating it."""
  reference = world.policy.init(jax.random.key(5))
  logprobs = {
    name: sgd.scores(world, base, world.rl)[0]
    for name, base in (("old", world.base), ("ref", reference))
  }
  world.rl = dataclasses.replace(
    world.rl, old_logprobs=logprobs["old"], ref_logprobs=logprobs["ref"]
  )
  method = world.method("implicit_reward", beta=0.4)
  batch = dataclasses.replace(world.batch(method, 5), rl=world.rl)
  after, metrics = sgd.run(method, world.start(method), batch)
  counted = world.rl.weights > 0

  def loss(base):
    now, _ = sgd.scores(world, base, world.rl)
    s = jnp.sum(counted * (now - logprobs["ref"]), axis=1)
    return preferences.direct(
      s, world.rl.correct, world.rl.scored, world.rl.questions, beta=0.4
    )

  np.testing.assert_allclose(metrics["rl/loss"], loss(world.base), rtol=1e-5)
  chex.assert_trees_all_close(
    sgd.moved(world.base, after.base),
    sgd.gradient(loss, world.base),
    atol=1e-5,
  )


def test_preferences_need_a_question_in_one_update(world):
  with pytest.raises(errors.ConfigError, match="must be 1, got 2 and 1"):
    world.method("implicit_reward", updates_per_step=2)


# Stages


def test_stages_grow_and_the_temperature_is_the_states(world):
  method = world.method("staged", temperature=0.9, sft_share=0.4)
  state = world.start(method)
  plans = [method.plan(step, conftest.scalars(state)) for step in range(10)]
  assert [plan.rollouts for plan in plans] == [False] * 4 + [True] * 6
  assert [p.length_share for p in plans[4:]] == [0.5, 0.5, 0.75, 0.75, 1.0, 1.0]
  used = np.float32(0.9)
  assert [p.temperature for p in plans] == [None] * 4 + [used] * 6
  assert method.needs.reference is None
  for step in (0, 4):
    state, metrics = sgd.run(method, state, world.batch(method, step))
    if step == 0:
      assert float(state.extra["temperature"]) == used
  expected = 0.9 * np.exp(0.5 * (0.3 - metrics["rl/entropy"]))
  np.testing.assert_allclose(
    state.extra["temperature"], max(expected, 0.6), rtol=1e-6
  )


@pytest.mark.parametrize(("step", "last"), [(4, False), (9, True)])
def test_a_stage_leaves_out_the_truncated_and_then_the_easy(world, step, last):
  host = world.host(world.method("staged", sft_share=0.4), step=step)
  kept = conftest.GROUPS.scored & ~conftest.GROUPS.truncated
  if last:  # a third of question 1 is right, all of questions 2 and 3
    kept = conftest.GROUPS.scored & np.array([[1], [1], [0], [0]], bool)
  np.testing.assert_array_equal(host.rl_asked["counted"], kept)
  advantages, _ = conftest.advantages(
    conftest.GROUPS.rewards, conftest.GROUPS.scored
  )
  np.testing.assert_array_equal(host.rl_asked["advantages"], advantages)


def test_the_temperature_settles_where_the_entropy_is_the_target():
  logits = jnp.array([2.0, 1.0, 0.3, -1.0])
  entropy = lambda t: (
    -jnp.sum(jax.nn.softmax(logits / t) * jax.nn.log_softmax(logits / t))
  )
  temperature, target = jnp.float32(1.0), 0.6
  for _ in range(100):
    temperature = staged.controlled(
      temperature,
      entropy(temperature),
      target=target,
      rate=0.5,
      lowest=0.1,
      highest=2.0,
    )
  np.testing.assert_allclose(entropy(temperature), target, rtol=1e-3)
  bounded = staged.controlled(
    jnp.float32(1), 9.0, target=0.3, rate=9.0, lowest=0.5, highest=1.5
  )
  assert float(bounded) == 0.5


def test_a_batch_is_scored_at_the_temperature_of_its_samples(world):
  batch = dataclasses.replace(world.rl, temperature=np.float32(0.5))
  now, _ = jax.jit(functools.partial(sgd.scores, world))(world.base, batch)
  expected, _ = terms.token_logprobs(
    world.policy, world.base, None, world.rl, temperature=0.5, chunk=64
  )
  np.testing.assert_allclose(now, expected, atol=1e-6)
  assert np.abs(now - sgd.scores(world, world.base, world.rl)[0]).max() > 0.1


def test_stages_must_all_have_all_settings(world):
  with pytest.raises(errors.ConfigError, match="got 3 for 2"):
    world.method("staged", lengths=(0.5, 1.0))
