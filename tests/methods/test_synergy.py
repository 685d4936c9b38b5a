"""Recipes of the Synergy study, against updates written out."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax.methods import contract
from tests.methods import sgd


def test_interleaved_is_an_update_of_rl_and_then_one_of_sft(world):
  after, metrics = sgd.step(world, "interleaved", sft_learning_rate=0.03)
  base = sgd.descended(world.base, sgd.rl_gradient(world, world.base))
  base = sgd.descended(base, sgd.sft_gradient(world, base), rate=0.03)
  chex.assert_trees_all_close(after.base, base, atol=2e-6)
  sft, rl = metrics["sft/gradient_norm"], metrics["rl/gradient_norm"]
  np.testing.assert_allclose(metrics["mix/sft_share"], sft / (sft + rl))


def test_interleaved_without_a_demonstration_leaves_momentum_at_rest(world):
  adam = optax.adam(0.05)
  state, _ = sgd.step(world, "interleaved", adam=0.05)
  none = np.zeros_like(world.sft.weights)
  world.sft = dataclasses.replace(world.sft, weights=none)
  after, _ = sgd.step(world, "interleaved", state=state, adam=0.05)
  gradient = sgd.rl_gradient(world, state.base)
  updates, _ = adam.update(gradient, state.optimizer_states["base"])
  chex.assert_trees_all_close(
    after.base, optax.apply_updates(state.base, updates), atol=1e-5
  )
  chex.assert_trees_all_equal(after.extra, state.extra)


def test_interleaved_gives_sft_what_no_sample_solved(world):
  host = world.host(world.method("interleaved"))
  assert host.rl_asked["counted"] is None
  assert [asked["ids"] for asked in host.sft_asked] == [[10]]


def test_data_mix_is_one_mean_over_all_tokens(world):
  after, metrics = sgd.step(world, "data_mix")
  counts = [(part.weights > 0).sum() for part in (world.sft, world.rl)]

  def loss(base):
    sft, rl = (sgd.scores(world, base, b)[0] for b in (world.sft, world.rl))
    own = jnp.sum(world.rl.advantages * rl * (world.rl.weights > 0))
    return -(jnp.sum(sft * (world.sft.weights > 0)) + own) / sum(counts)

  chex.assert_trees_all_close(
    sgd.moved(world.base, after.base),
    sgd.gradient(loss, world.base),
    atol=2e-6,
  )
  np.testing.assert_allclose(
    metrics["mix/sft_weight"], counts[0] / sum(counts), rtol=1e-6
  )


@pytest.mark.parametrize("sft_share", [0.0, 0.5, 1.0])
def test_merge_adds_what_each_branch_changed(world, sft_share):
  options = {"sft_share": sft_share, "rl_weight": 0.7, "sft_weight": 0.4}
  method = world.method("merge", total_updates=4, **options)
  state, update = world.start(method), jax.jit(method.update)
  for step in range(4):
    # The last step ends with an update that adds the branches up.
    for batch in world.host(method, step=step, steps=4).batches:
      state, *_ = update(state, batch)
  merged = state.base
  ends = {}
  for branch, gradient in (
    ("rl", sgd.rl_gradient),
    ("sft", sgd.sft_gradient),
  ):
    share = sft_share if branch == "sft" else 1 - sft_share
    ends[branch] = world.base
    for _ in range(round(4 * share)):
      ends[branch] = sgd.descended(ends[branch], gradient(world, ends[branch]))
  expected = jax.tree.map(
    lambda start, rl, sft: start + 0.7 * (rl - start) + 0.4 * (sft - start),
    world.base,
    ends["rl"],
    ends["sft"],
  )
  chex.assert_trees_all_close(merged, expected, atol=3e-6)


@pytest.mark.parametrize("first", ["sft", "rl"])
def test_both_orders_measure_in_both_stages_what_one_undoes(world, first):
  """Adam afresh in the second stage, and its reference what the first made."""
  adam = optax.adam(0.05)
  method = world.method(
    "non_decoupling",
    adam=0.05,
    total_updates=4,
    first=first,
  )
  assert method.plan(0, {}) == method.plan(3, {}) == contract.Plan(True, True)
  assert method.needs.reference == "own"
  state, update = world.start(method), jax.jit(method.update)
  base, moments = world.base, adam.init(world.base)
  order = ["sft", "rl"] if first == "sft" else ["rl", "sft"]
  for step in range(4):
    if step == 2:
      moments, switched = adam.init(base), state.base
    kind = order[step // 2]
    gradient = {"sft": sgd.sft_gradient, "rl": sgd.rl_gradient}[kind](
      world, base
    )
    updates, moments = adam.update(gradient, moments)
    base = optax.apply_updates(base, updates)
    state, metrics, _ = update(state, world.batch(method, step))
    for name in ("sft/loss", "rl/loss", "bilevel/gradient_cosine"):
      assert np.isfinite(metrics[name])
    assert float(metrics["mix/sft_share"]) == float(kind == "sft")
    chex.assert_trees_all_close(state.base, base, atol=2e-5)
  chex.assert_trees_all_equal(state.extra["reference"], switched)
