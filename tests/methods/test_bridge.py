"""BRIDGE's update against the identities that define it."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax.bilevel import problem as problem_lib
from tests.methods import conftest, sgd

LAST = ((0, 0), (1, 0))  # column 0 has no log-prob


def _gradients(world, *, kl_coef=0.0):
  problem = world.problem(kl_coef=kl_coef)
  sft = problem_lib.gradient(problem.upper)
  rl = problem_lib.gradient(problem.lower)
  return sft, rl


def _away(tree, scale):
  return jax.tree.map(
    lambda x: x + scale * jax.random.normal(jax.random.key(9), x.shape), tree
  )


def test_penalty_one_with_equal_bases_leaves_the_adapter_exactly_alone(world):
  method = world.method("bridge", penalty=1.0)
  state = world.start(method)
  after, metrics = sgd.run(method, state, world.batch())
  chex.assert_trees_all_equal(after.adapter, state.adapter)
  assert float(metrics["optimizer/adapter_gradient_norm"]) == 0.0
  assert float(metrics["optimizer/base_gradient_norm"]) > 0.0
  assert float(metrics["bilevel/cooperative_gain"]) == 0.0


ESTIMATES = ("k3", "k2", "reward")


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_with_equal_bases_the_gain_has_no_part_of_the_kl(world, estimate):
  """The copy's KL term has a ratio, of 1 to the bit."""
  method = world.method(
    "bridge",
    penalty=1.0,
    kl_coef=0.5,
    settings={"rl.kl_estimate": estimate},
  )
  state = world.start(method)
  ref = np.full(world.rl.weights.shape, -2.1, np.float32)
  world.rl = dataclasses.replace(world.rl, ref_logprobs=ref)
  after, metrics = sgd.run(method, state, world.batch())
  chex.assert_trees_all_equal(after.adapter, state.adapter)
  assert float(metrics["rl/kl_to_reference"]) > 0.01


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_the_rl_only_copy_descends_its_own_kl_on_anothers_samples(
  world, estimate
):
  """The joint policy's samples, each of one token, by their probability."""
  merged = lambda base: world.policy.merge(base, world.adapter)["table"]
  tables = {
    name: jax.nn.log_softmax(merged(_away(world.base, scale)))
    for name, scale in {"joint": 0.0, "copy": 0.3, "start": -0.4}.items()
  }
  rows = np.indices((conftest.VOCABULARY,) * 2).reshape(2, -1)
  of = lambda name: np.pad(np.array(tables[name])[tuple(rows)][:, None], LAST)
  counted = np.pad(np.ones((rows.shape[1], 1), np.float32), LAST)
  sampled = conftest.rl_batch(np.random.default_rng(0), rows.shape[1])
  rl = dataclasses.replace(
    sampled,
    tokens=rows.T.astype(np.int32),
    positions=np.zeros_like(rows.T),
    segment_ids=np.ones_like(rows.T),
    weights=np.exp(of("joint")) * counted,
    advantages=0 * counted,
    sampler_logprobs=None,
    ref_logprobs=of("start"),
  )
  method = world.method(
    "bridge",
    kl_coef=0.5,
    settings={
      "rl.kl_estimate": estimate,
      "rl.clip_low": 1.0,
      "rl.clip_high": 1e6,
    },
  )
  copy = _away(world.base, 0.3)
  state = world.start(method, rl_only_base=copy)
  batch = dataclasses.replace(world.batch(), rl=rl)
  after, _ = sgd.run(method, state, batch)

  def kl(base):
    now, ref = jax.nn.log_softmax(merged(base)), tables["start"]
    if estimate == "k3":
      now, ref = ref, now
    return 0.5 * jnp.sum(jnp.exp(now) * (now - ref))

  chex.assert_trees_all_close(
    sgd.moved(copy, after.rl_only_base), jax.grad(kl)(copy), atol=2e-6
  )


def test_penalty_zero_moves_the_adapter_by_sft_alone_to_the_bit(world):
  bridge = world.method("bridge", penalty=0.0)
  state = world.start(bridge, rl_only_base=_away(world.base, 1.0))
  after, _ = sgd.run(bridge, state, world.batch())
  sft, _ = _gradients(world)

  def sft_step(base, adapter):
    gradient = sft(base, adapter, world.sft).by_upper
    # The optimiser's own arithmetic: 0.1 is its learning rate.
    return jax.tree.map(lambda w, g: w + (-0.1) * g, adapter, gradient)

  expected = jax.jit(sft_step)(world.base, world.adapter)
  chex.assert_trees_all_close(after.adapter, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("penalty", [0.3, 0.7])
def test_an_equal_copy_makes_the_gain_irrelevant_to_the_adapter(world, penalty):
  """Its gradient is then (1 - penalty) of SFT's, with nothing from RL."""
  method = world.method("bridge", penalty=penalty)
  state = world.start(method)
  after, _ = sgd.run(method, state, world.batch())
  sft, _ = _gradients(world)
  expected = jax.tree.map(
    lambda g: (1 - penalty) * g,
    sft(world.base, world.adapter, world.sft).by_upper,
  )
  chex.assert_trees_all_close(
    sgd.moved(state.adapter, after.adapter), expected, atol=2e-6
  )


def test_every_gradient_is_the_papers_at_the_old_parameters(world):
  penalty, hat = 0.6, _away(world.base, 0.05)
  method = world.method("bridge", penalty=penalty)
  state = world.start(method, rl_only_base=hat)
  after, metrics = sgd.run(method, state, world.batch())

  sft_gradient, rl_gradient = _gradients(world)
  sft = sft_gradient(world.base, world.adapter, world.sft)
  rl = rl_gradient(world.base, world.adapter, world.rl)
  shared = dataclasses.replace(world.rl, old_logprobs=rl.aux["logprobs"])
  rl_only = rl_gradient(hat, world.adapter, shared)
  mix = lambda a, b: jax.tree.map(
    lambda x, y: (1 - penalty) * x + penalty * y, a, b
  )
  gap = jax.tree.map(jnp.subtract, rl.by_upper, rl_only.by_upper)
  expected = {
    "base": mix(sft.by_lower, rl.by_lower),
    "rl_only_base": rl_only.by_lower,
    "adapter": mix(sft.by_upper, gap),
  }
  for name, gradient in expected.items():
    moved = sgd.moved(getattr(state, name), getattr(after, name))
    chex.assert_trees_all_close(moved, gradient, atol=3e-6)
  assert float(metrics["bilevel/kl_to_rl_only"]) > 0.0


def test_the_rl_only_ratio_can_be_its_own(world):
  """On policy, no token of the RL-only copy is ever clipped."""
  hat = _away(world.base, 0.5)
  clipped = {}
  for ratio in ("behaviour", "on_policy"):
    method = world.method("bridge", rl_only_ratio=ratio)
    state = world.start(method, rl_only_base=hat)
    _, metrics = sgd.run(method, state, world.batch())
    clipped[ratio] = float(metrics["bilevel/rl_only_clip_fraction"])
  assert clipped["on_policy"] == 0.0
  assert clipped["behaviour"] > 0.1


def test_one_step_rebuilds_the_copy_from_one_rl_update(world):
  method = world.method("bridge", rl_only_base="one_step", penalty=1.0)
  state = world.start(method)
  assert state.rl_only_base is None
  after, _ = sgd.run(method, state, world.batch())
  _, rl_gradient = _gradients(world)
  rl = rl_gradient(world.base, world.adapter, world.rl)
  hat = jax.tree.map(lambda b, g: b - 0.1 * g, world.base, rl.by_lower)
  shared = dataclasses.replace(world.rl, old_logprobs=rl.aux["logprobs"])
  rl_only = rl_gradient(hat, world.adapter, shared)
  expected = jax.tree.map(jnp.subtract, rl.by_upper, rl_only.by_upper)
  chex.assert_trees_all_close(
    sgd.moved(state.adapter, after.adapter), expected, atol=2e-6
  )


def test_resync_returns_the_copy_to_the_base_every_k_updates(world):
  method = world.method("bridge", rl_only_base="resync", resync_every=2)
  update = jax.jit(method.update)
  state = world.start(method, rl_only_base=_away(world.base, 1.0))
  gains = []
  for _ in range(4):
    state, metrics, _ = update(state, world.batch())
    gains.append(float(metrics["bilevel/kl_to_rl_only"]))
  # Updates 0 and 2 start from equal bases; 1 and 3 do not.
  np.testing.assert_array_equal(np.array(gains)[[0, 2]], 0.0)
  assert gains[1] > 0.0
  assert gains[3] > 0.0


def test_the_penalty_follows_its_schedule(world):
  method = world.method("bridge", penalty=0.2, penalty_end=0.7)
  update = jax.jit(method.update)
  state, seen = world.start(method), []
  for _ in range(10):
    state, metrics, _ = update(state, world.batch())
    seen.append(float(metrics["bilevel/penalty"]))
  np.testing.assert_allclose(seen, 0.2 + 0.05 * np.arange(10), rtol=1e-5)


def test_a_rank_zero_delta_gives_the_first_factor_no_gradient(world):
  """B = 0 makes A's first gradient exactly zero; that is not a bug."""
  world.adapter = world.policy.init_adapter(jax.random.key(1))
  method = world.method("bridge")
  state = world.start(method)
  after, _ = sgd.run(method, state, world.batch())
  chex.assert_trees_all_equal(after.adapter["A"], state.adapter["A"])
  assert (after.adapter["B"] != state.adapter["B"]).any()
