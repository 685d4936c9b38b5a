"""One contract over every method."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from bilevel_jax import methods
from bilevel_jax.objectives import weighting
from bilevel_jax.training import step

NAMES = sorted(methods.METHODS)
FORMS = {
  "unrolled": {"inner_steps": 2},
  "implicit": {"solver_iterations": 2},
  "one_step": {"rl_only_base": "one_step", "mixed_product": "exact"},
}
CASES = [(name, {}) for name in NAMES] + [
  ("bridge", {"hypergradient": form, **options})
  for form, options in FORMS.items()
]
every_case = pytest.mark.parametrize(
  ("name", "settings"),
  CASES,
  ids=lambda value: value if isinstance(value, str) else "-".join(value),
)


def _empty(batch):
  return dataclasses.replace(batch, weights=np.zeros_like(batch.weights))


@pytest.mark.parametrize("name", NAMES)
def test_an_update_keeps_the_structure_and_is_traced_once(world, name):
  method = world.method(name)
  update = jax.jit(chex.assert_max_traces(method.update, n=1))
  state = world.start(method)
  for _ in range(3):
    new, metrics = update(state, world.batch())
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    assert all(np.isfinite(float(v)) for v in metrics.values()), metrics
    assert int(new.updates) == int(state.updates) + 1
    state = new


@pytest.mark.parametrize("name", NAMES)
def test_an_update_is_deterministic(world, name):
  method = world.method(name)
  update = jax.jit(method.update)
  results = [update(world.start(method), world.batch()) for _ in range(2)]
  chex.assert_trees_all_equal(*results)


def _off_policy(world):
  """The batch with log-probs of an older policy, as `Plan` may ask for."""
  old = np.full(world.rl.weights.shape, -2.0, np.float32)
  world.rl = dataclasses.replace(world.rl, old_logprobs=old)


@pytest.mark.parametrize("rows", [1, 3])
@every_case
def test_micro_batches_change_nothing(world, name, settings, rows):
  _off_policy(world)
  whole = world.method(name, **settings)
  split = world.method(name, rows=rows, **settings)
  expected, expected_metrics = jax.jit(whole.update)(
    world.start(whole), world.batch()
  )
  actual, metrics = jax.jit(split.update)(world.start(split), world.batch())
  chex.assert_trees_all_close(actual, expected, atol=1e-6)
  chex.assert_trees_all_close(metrics, expected_metrics, atol=1e-5)


def test_a_naive_mean_over_micro_batches_would_be_caught(world):
  """The negative of the test above: per-micro-batch means are wrong."""
  mask = world.sft.weights > 0
  halves = [world.sft.weights * 0, world.sft.weights * 0]
  for half, rows in zip(halves, (slice(0, 3), slice(3, 6)), strict=True):
    half[rows] = weighting.token_mean(mask[rows].astype(np.float32)) / 2
  naive = dataclasses.replace(world.sft, weights=halves[0] + halves[1])
  method = world.method("sft")
  update = jax.jit(method.update)
  right, _ = update(world.start(method), world.batch())
  wrong, _ = update(
    world.start(method), dataclasses.replace(world.batch(), sft=naive)
  )
  difference = np.abs(right.base["table"] - wrong.base["table"]).max()
  assert difference > 1e-4


@pytest.mark.parametrize("empty", ["sft", "rl", "both"])
@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_part_gives_zero_and_nothing_breaks(world, name, rows, empty):
  method = world.method(name, rows=rows)
  batch = world.batch()
  if empty in ("sft", "both"):
    batch = dataclasses.replace(batch, sft=_empty(batch.sft))
  if empty in ("rl", "both"):
    batch = dataclasses.replace(batch, rl=_empty(batch.rl))
  after, metrics = jax.jit(method.update)(world.start(method), batch)
  chex.assert_tree_all_finite(after)
  assert all(np.isfinite(float(v)) for v in metrics.values()), metrics
  if empty == "both":
    chex.assert_trees_all_equal(after.base, world.base)


@every_case
def test_devices_change_nothing(world, name, settings):
  _off_policy(world)
  method = world.method(name, **settings)
  update = jax.jit(method.update)
  expected, _ = update(world.start(method), world.batch())
  mesh = jax.make_mesh(
    (2,),
    ("data",),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:2],
  )
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  actual, _ = update(
    jax.device_put(world.start(method), everywhere),
    jax.device_put(world.batch(), place),
  )
  chex.assert_trees_all_close(actual, expected, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_non_finite_update_is_skipped_and_counted(world, name):
  method = world.method(name)
  update = jax.jit(step.guarded(method.update))
  state = world.start(method)
  bad = world.batch()
  nan = lambda batch: dataclasses.replace(
    batch, weights=np.where(batch.weights > 0, np.nan, 0).astype(np.float32)
  )
  bad = dataclasses.replace(bad, sft=nan(bad.sft), rl=nan(bad.rl))
  for count in (1, 2):
    state, metrics = update(state, bad)
    assert int(state.skipped_in_a_row) == count
    assert float(metrics["training/skipped_updates"]) == 1.0
  chex.assert_trees_all_equal(state.base, world.base)
  assert int(state.updates) == 0
  state, metrics = update(state, world.batch())
  assert int(state.skipped_in_a_row) == 0
  assert float(metrics["training/skipped_updates"]) == 0.0
  assert (state.base["table"] != world.base["table"]).any()
