"""What a micro-batch sees of a batch: its own rows, whole, with their names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import types
from bilevel_jax.methods import accumulation, terms
from bilevel_jax.objectives import weighting
from bilevel_jax.rollout import assemble, packing
from bilevel_jax.training import programs, sharding
from tests.methods import conftest

IDS = [4, 0, 9, 2, 7, 11, 5, 1]  # of the demonstrations, by row
PACKED = packing.Packing(micro_batch_tokens=20, row_multiple=2)


def _demonstrations():
  pairs = conftest.pairs(np.random.default_rng(3), len(IDS))
  return [types.Demonstration(i, *p) for i, p in zip(IDS, pairs, strict=True)]


@pytest.mark.parametrize("devices", [1, 2])
def test_an_update_knows_each_demonstration_by_its_id(world, devices):
  """Each one's own weight, in the base, has the slope of its own loss."""
  shown = _demonstrations()
  batch = packing.pack(
    assemble.demonstration_batch(shown, weighting.token_mean, rows=10), PACKED
  )
  assert batch.packed.used > 1
  mesh = sharding.make_mesh(devices, 1, 1, jax.devices()[:devices])

  def objective(base, adapter, batch):
    logprobs, _ = terms.token_logprobs(
      world.policy, base, adapter, batch, temperature=1.0, chunk=64
    )
    own = base["of_each"][batch.ids]
    return -jnp.sum(own[:, None] * batch.weights * logprobs), {"ids": batch.ids}

  base = world.base | {"of_each": jnp.arange(1.0, 13.0)}
  if devices > 1:
    everywhere = jax.sharding.PartitionSpec()
    base = jax.device_put(base, jax.sharding.NamedSharding(mesh, everywhere))
  found = jax.jit(accumulation.gradient(objective))(
    base, None, sharding.place_batch(batch, mesh)
  )
  total = sum(len(d.solution) for d in shown)
  expected = np.zeros(12)
  for d in shown:
    alone = assemble.token_batch([(d.prompt, d.solution)], lambda mask: mask)
    logprobs, _ = terms.token_logprobs(
      world.policy, world.base, None, alone, temperature=1.0, chunk=64
    )
    expected[d.id] = -np.sum(alone.weights * logprobs) / total
  np.testing.assert_allclose(found.by_lower["of_each"], expected, atol=1e-6)
  assert (expected[IDS] > 0.01).all()
  # Rows are put together again, the empty ones at the end.
  assert found.aux["ids"].tolist() == [*IDS, 0, 0]


def test_a_micro_batch_has_the_temperature_of_the_whole(world):
  batch = dataclasses.replace(world.rl, temperature=np.float32(0.5))
  packed = packing.pack(batch, packing.Packing(micro_batch_tokens=20))
  assert packed.packed.used > 1
  score = jax.jit(programs.scoring(world.policy, temperature=1.0, chunk=64))
  counted = batch.weights > 0
  np.testing.assert_allclose(
    np.asarray(score(world.base, None, packed))[counted],
    np.asarray(score(world.base, None, batch))[counted],
    atol=1e-6,
  )
  plain = np.asarray(score(world.base, None, world.rl))
  assert np.abs(plain - score(world.base, None, batch))[counted].max() > 0.1
