"""BRIDGE's weights of demonstrations, against each row's own gradient."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax import errors, types
from bilevel_jax.bilevel import evidence
from bilevel_jax.methods import contract, weighted_updates
from bilevel_jax.rollout import packing
from bilevel_jax.training import sharding
from tests.methods import conftest, sgd
from tests.methods.conftest import settings_of


def _method(world, **options):
  return world.method("bridge", upper="demonstrations", **options)


def _batch(world, **changes):
  return types.StepBatch(
    rl=dataclasses.replace(world.rl, **changes), sft=world.sft
  )


def _row(batch, i):
  mask = np.zeros((len(batch.tokens), 1), np.float32)
  mask[i] = 1
  return dataclasses.replace(batch, weights=batch.weights * mask)


@pytest.mark.parametrize("hypergradient", ["one_step", "unrolled"])
def test_a_step_says_what_each_row_does_to_the_reward(world, hypergradient):
  """By SGD: <grad L_RL, -rate (1 - penalty) grad L_i>, a row at a time."""
  method = _method(
    world,
    hypergradient=hypergradient,
    direction_decay=0.0,
    mixed_product="exact",
    surrogate="fixed_sample",
  )
  old = np.full(world.rl.weights.shape, -2.0, np.float32)
  after, _ = sgd.run(
    method, world.start(method), _batch(world, old_logprobs=old)
  )
  found = after.extra["evidence"]
  rl = world.rl_loss()
  batch = _batch(world, old_logprobs=old).rl
  at = world.base
  if hypergradient == "unrolled":  # at the end of the step
    at = after.base
  by_rl = jax.grad(lambda base: rl(base, None, batch)[0])(at)
  sft = world.problem().upper
  mass = np.sum(world.sft.weights, axis=1)
  derivatives = []
  for i in range(len(mass)):
    one = _row(world.sft, i)
    by_row = jax.grad(lambda base, b=one: sft(base, None, b)[0])(world.base)
    product = sum(
      float(jnp.sum(a * b))
      for a, b in zip(
        jax.tree.leaves(by_rl), jax.tree.leaves(by_row), strict=True
      )
    )
    derivatives.append(-product / mass[i])
  worth = -(np.array(derivatives) - np.mean(derivatives))
  z = worth / np.sqrt(np.mean(worth**2))
  np.testing.assert_allclose(found.total, z, rtol=2e-4, atol=2e-4)
  assert found.steps == 1


def test_a_row_of_a_known_weight_counts_that_much(world):
  """The base moves by sum s_i grad L_i, and by grad L_RL a third of that."""
  method = _method(world, penalty=0.25)
  state = world.start(method)
  s = np.linspace(0.2, 1.8, len(world.sft.tokens)).astype(np.float32)
  known = dataclasses.replace(
    state.extra["evidence"],
    weights=jnp.asarray(s),
    known=jnp.ones(len(s), bool),
  )
  state = dataclasses.replace(state, extra=state.extra | {"evidence": known})
  after, _ = sgd.run(method, state, _batch(world))
  batch = dataclasses.replace(world.sft, weights=world.sft.weights * s[:, None])
  sft, rl = world.problem().upper, world.rl_loss()
  loss = lambda base: (
    sft(base, None, batch)[0] + 0.25 / 0.75 * rl(base, None, world.rl)[0]
  )
  want = sgd.descended(world.base, sgd.gradient(loss, world.base))
  for got, one in zip(
    jax.tree.leaves(after.base), jax.tree.leaves(want), strict=True
  ):
    np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "options",
  [
    *({"hypergradient": form} for form in weighted_updates.FORMS),
    {"upper": "token_weight"},
  ],
  ids=lambda options: "-".join(options.values()),
)
def test_weights_of_one_are_one_weighted_loss(world, options):
  """The gradient has the size of `mixed`'s: a norm clips both alike."""
  old, _ = sgd.scores(world, world.base, world.rl)
  after = {}
  for name, own in (
    ("mixed", {}),
    ("bridge", {"upper": "demonstrations"} | options),
  ):
    method = world.method(name, **own)
    batch = _batch(world, old_logprobs=np.asarray(old))
    after[name], _ = sgd.run(method, world.start(method), batch)
  chex.assert_trees_all_close(
    after["bridge"].base, after["mixed"].base, rtol=1e-5, atol=1e-6
  )


def test_rewards_that_say_nothing_move_no_weight(world):
  method = _method(world)
  state = world.start(method)
  silent = np.zeros_like(world.rl.advantages)
  for _ in range(3):
    state, metrics = sgd.run(method, state, _batch(world, advantages=silent))
  found = state.extra["evidence"]
  np.testing.assert_array_equal(found.weights, 1.0)
  assert not found.times.any()
  assert metrics["demonstrations/weight"] == 1.0
  assert not optax.tree.norm(state.extra["direction"])


def test_a_ranking_says_what_was_learned(world):
  method = _method(world, adam=1e-2)
  state, _ = sgd.run(method, world.start(method), _batch(world))
  assert method.ranking is not None
  found = method.ranking(state)
  assert isinstance(found, evidence.Ranking)
  np.testing.assert_array_equal(found.times, 1)
  assert np.isfinite(found.effect).all()


@pytest.mark.parametrize(("devices", "tokens"), [(1, 16), (1, 64), (4, None)])
def test_no_split_of_a_batch_changes_what_is_learned(world, devices, tokens):
  """Two steps, in micro-batches, over devices, and with rows of padding."""
  # By SGD: Adam's first step has hardly a derivative but for rounding.
  method = _method(world, mixed_product="exact")
  start = world.start(method)
  want = start
  for _ in range(2):
    want, _ = sgd.run(method, want, _batch(world))
  how = packing.Packing(micro_batch_tokens=tokens, row_multiple=devices)
  packed = [packing.pack(b, how) for b in (world.rl, world.sft)]
  assert (packed[1].packed.used > 1) == ((devices, tokens) == (1, 16))
  mesh = sharding.make_mesh(devices, 1, 1, jax.devices()[:devices])
  rl, sft = sharding.place_batch(packed, mesh)
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  found = jax.device_put(start, everywhere)
  for _ in range(2):
    found, _ = sgd.run(method, found, types.StepBatch(rl=rl, sft=sft))
  chex.assert_trees_all_close(
    found.extra["evidence"], want.extra["evidence"], rtol=1e-5, atol=1e-6
  )
  assert np.ptp(want.extra["evidence"].total) > 0.1


def _grouped(world, *names):
  """The method with a weight by group, of six demonstrations in turns."""
  members = np.arange(6, dtype=np.int32) % len(names)
  changes = {
    "method.bridge.upper": "demonstrations",
    "method.bridge.per": ("group",),
    "data.demonstration_group": "kind",
  }
  groups = contract.DemonstrationGroups(names, members)
  settings = settings_of("bridge", changes)
  return conftest.learner.build_method(settings, world.policy, groups)


def test_a_difference_holds_what_a_token_counts(world):
  """sft.token_weight is a constant of the step, as in the exact product."""
  found = []
  for mixed_product in ("exact", "finite_difference"):
    changes = {
      "method.bridge.upper": "demonstrations",
      "method.bridge.mixed_product": mixed_product,
      "sft.token_weight": "probability",
    }
    groups = contract.DemonstrationGroups(members=np.zeros(6, np.int32))
    settings = settings_of("bridge", changes)
    method = conftest.learner.build_method(settings, world.policy, groups)
    after, _ = sgd.run(method, world.start(method), _batch(world))
    found.append(after.extra["evidence"].total)
  np.testing.assert_allclose(*found, rtol=0.01, atol=0.01)


def test_groups_are_features(world):
  method = _grouped(world, "a", "b")
  state, metrics = sgd.run(method, world.start(method), _batch(world))
  features = state.extra["evidence"].features
  np.testing.assert_array_equal(features, np.eye(2)[[0, 1, 0, 1, 0, 1]])
  assert {"demonstrations/weight_of_a", "demonstrations/weight_of_b"} <= set(
    metrics
  )


def test_one_group_is_no_group(world):
  with pytest.raises(errors.ConfigError, match="two groups or more, got one"):
    _grouped(world, "a")


@pytest.mark.parametrize("hypergradient", ["one_step", "unrolled"])
def test_an_optimiser_without_a_derivative_is_refused(world, hypergradient):
  changes = {
    "method.bridge.upper": "demonstrations",
    "method.bridge.hypergradient": hypergradient,
    "optimizer.base.name": "muon",
  }
  with pytest.raises(errors.ConfigError, match="optimiser of base"):
    conftest.learner.build_method(settings_of("bridge", changes), world.policy)


@pytest.mark.parametrize(
  ("options", "wanted"),
  [
    ({}, False),
    ({"hypergradient": "unrolled"}, True),
    ({"hypergradient": "implicit"}, False),
    ({"hypergradient": "implicit", "mixed_product": "finite_difference"}, True),
  ],
)
def test_a_loss_at_another_base_has_the_old_log_probs(world, options, wanted):
  assert _method(world, **options).plan(0, {}).old_logprobs is wanted


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"compare_with": ("unrolled",)}, "takes one hypergradient"),
    ({"rl_only_base": "one_step"}, "has no RL-only copy"),
    ({"rank_only": True, "hypergradient": "penalty"}, "two that move"),
    ({"per": ("group",)}, "data.demonstration_group"),
    ({"per": ("mood",)}, "method.bridge.per must name some of"),
    ({"penalty_schedule": "adaptive"}, "does not measure"),
  ],
)
def test_what_it_cannot_have_is_refused(changes, said):
  own = {f"method.bridge.{name}": value for name, value in changes.items()}
  with pytest.raises(errors.ConfigError, match=said):
    settings_of("bridge", {"method.bridge.upper": "demonstrations"} | own)
