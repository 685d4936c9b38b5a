"""One contract over every method, at each kind of step that it plans."""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import pytest

from bilevel_jax import methods, types
from bilevel_jax.methods import contract, terms
from bilevel_jax.objectives import weighting
from bilevel_jax.rollout import packing
from bilevel_jax.training import programs, sharding
from tests.methods import conftest

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
CASES += [
  ("bridge", {"upper": "token_weight", "mixed_product": "exact"}),
  ("bridge", {"upper": "demonstrations", "hypergradient": "penalty"}),
]
every_case = pytest.mark.parametrize(
  ("name", "settings"),
  CASES,
  ids=lambda value: value if isinstance(value, str) else "-".join(value),
)


OPTIONS = {"relift": {"buffer": 1}}  # so that a step has an update of SFT


class Case(NamedTuple):
  method: contract.Method
  update: Any  # guarded and jitted
  traces: list[None]  # one for each time that `update` was traced


@functools.cache
def _compiled(name: str, train: str = "all", **settings) -> Case:
  """Compiled once for all tests: nearly all of their time is compilation."""
  options = OPTIONS.get(name, {}) | settings
  method = conftest.make_world(train).method(name, **options)
  traces = []

  def counted(state, batch):
    traces.append(None)
    return programs.guarded(method.update)(state, batch)

  return Case(method, jax.jit(counted), traces)


@pytest.fixture(scope="module", params=["all", "adapter"])
def train(request):
  """What is trained; the programs of one at a time, as those of one file."""
  yield request.param
  _compiled.cache_clear()
  jax.clear_caches()


def _off_policy(world):
  """The batch with log-probs of an older policy, as `Plan` may ask for."""
  old = np.full(world.rl.weights.shape, -2.0, np.float32)
  world.rl = dataclasses.replace(world.rl, old_logprobs=old)


def _packed(batch, row_multiple=1):
  """The batch in micro-batches of rows that hold several sequences."""
  how = packing.Packing(micro_batch_tokens=20, row_multiple=row_multiple)
  return types.StepBatch(
    sft=batch.sft and packing.pack(batch.sft, how),
    rl=batch.rl and packing.pack(batch.rl, how),
    teacher=batch.teacher and packing.pack(batch.teacher, how),
  )


def _assert_finite(metrics):
  assert all(np.isfinite(float(v)) for v in metrics.values()), metrics


@pytest.mark.parametrize("name", NAMES)
def test_an_update_keeps_the_structure_and_is_traced_once(name, train):
  world = conftest.make_world(train)
  method, update, traces = _compiled(name, train)
  state, before = world.start(method), len(traces)
  kinds = world.kinds(method)
  for batch in 2 * kinds:
    new, metrics = update(state, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    _assert_finite(metrics)
    learns = batch.rl is not None or batch.sft is not None
    assert int(new.updates) == int(state.updates) + learns
    state = new
  assert len(traces) - before <= len(kinds)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_learns_what_it_descends(name, train):
  """Demonstrations, or the tokens with an advantage, become likelier."""
  world = conftest.make_world(train)
  method, update, _ = _compiled(name, train)
  score = jax.jit(
    functools.partial(
      terms.token_logprobs, world.policy, chunk=64, temperature=1.0
    )
  )

  def goals(state):
    sft = score(state.base, state.adapter, world.sft)[0] * world.sft.weights
    rl = score(state.base, state.adapter, world.rl)[0] * world.rl.weights
    return {
      "sft": float(sft.sum()),
      "rl": float((rl * world.rl.advantages).sum()),
    }

  state = world.start(method)
  before, seen = goals(state), set()
  for step in range(10):
    batch = world.batch(method, step)
    seen |= {part for part in ("sft", "rl") if getattr(batch, part) is not None}
    state, _ = update(state, batch)
  after = goals(state)
  assert any(after[part] > before[part] + 1e-3 for part in seen)


@every_case
def test_micro_batches_change_nothing(name, settings, train):
  world = conftest.make_world(train)
  _off_policy(world)
  method, update, _ = _compiled(name, train, **settings)
  for batch in world.kinds(method):
    expected, expected_metrics = update(world.start(method), batch)
    actual, metrics = update(world.start(method), _packed(batch))
    chex.assert_trees_all_close(actual, expected, atol=1e-6)
    chex.assert_trees_all_close(metrics, expected_metrics, atol=1e-5)


def test_a_naive_mean_over_micro_batches_would_be_caught(world):
  """The negative of the test above: per-micro-batch means are wrong."""
  mask = world.sft.weights > 0
  halves = [world.sft.weights * 0, world.sft.weights * 0]
  for half, rows in zip(halves, (slice(0, 3), slice(3, 6)), strict=True):
    half[rows] = weighting.token_mean(mask[rows].astype(np.float32)) / 2
  naive = dataclasses.replace(world.sft, weights=halves[0] + halves[1])
  method, update, _ = _compiled("sft")
  right, _ = update(world.start(method), world.batch(method))
  wrong, _ = update(
    world.start(method), dataclasses.replace(world.batch(method), sft=naive)
  )
  difference = np.abs(right.base["table"] - wrong.base["table"]).max()
  assert difference > 1e-4


@pytest.mark.parametrize("empty", ["sft", "rl", "both"])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_part_gives_zero_and_nothing_breaks(world, name, split, empty):
  _off_policy(world)
  method, update, _ = _compiled(name)
  none = lambda part: dataclasses.replace(
    part, weights=np.zeros_like(part.weights)
  )
  if empty in ("sft", "both"):
    world.sft = none(world.sft)
  if empty in ("rl", "both"):
    world.rl = none(world.rl)
  for batch in world.kinds(method):
    if split:
      batch = _packed(batch)
    after, metrics = update(world.start(method), batch)
    chex.assert_tree_all_finite(after)
    _assert_finite(metrics)
    if empty == "both":
      chex.assert_trees_all_equal(after.base, world.base)


@every_case
def test_devices_change_nothing(name, settings, train):
  world = conftest.make_world(train)
  _off_policy(world)
  method, update, _ = _compiled(name, train, **settings)
  mesh = sharding.make_mesh(2, 1, 1, jax.devices()[:2])
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  for batch in world.kinds(method):
    expected, _ = update(world.start(method), batch)
    actual, _ = update(
      jax.device_put(world.start(method), everywhere),
      sharding.place_batch(_packed(batch, row_multiple=2), mesh),
    )
    chex.assert_trees_all_close(actual, expected, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_non_finite_update_is_skipped_and_counted(world, name):
  method, update, _ = _compiled(name)
  good = world.kinds(method)[0]
  nan = lambda part: (
    part
    and dataclasses.replace(
      part, weights=np.where(part.weights > 0, np.nan, 0).astype(np.float32)
    )
  )
  bad = dataclasses.replace(good, sft=nan(good.sft), rl=nan(good.rl))
  state = world.start(method)
  for count in (1, 2):
    state, metrics = update(state, bad)
    assert int(state.skipped_in_a_row) == count
    assert float(metrics["training/skipped_updates"]) == 1.0
  chex.assert_trees_all_equal(state.base, world.base)
  assert int(state.updates) == 0
  state, metrics = update(state, good)
  assert int(state.skipped_in_a_row) == 0
  assert float(metrics["training/skipped_updates"]) == 0.0
  assert (state.base["table"] != world.base["table"]).any()
