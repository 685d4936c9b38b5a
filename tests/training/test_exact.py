"""A transformer's gradient is one number, however it is computed."""

import dataclasses
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

from bilevel_jax import types
from bilevel_jax.methods import accumulation, terms
from bilevel_jax.objectives import policy_gradient, weighting
from bilevel_jax.rollout import assemble, packing
from bilevel_jax.training import sharding
from tests import processes, tiny_run

# Eight devices divide its heads, its width and its vocabulary.
ARCHITECTURE = dataclasses.replace(tiny_run.ARCHITECTURE, kv_heads=2)
MESHES = {
  "2 devices, data": (2, 1, 1),
  "4 devices, fsdp": (1, 4, 1),
  "4 devices, fsdp and tensor": (1, 2, 2),
}


def _batch() -> types.RLBatch:
  rng = np.random.default_rng(0)
  prompts = [rng.integers(2, 60, n).astype(np.int32) for n in (3, 7)]
  pairs = [
    (prompts[row % 2], rng.integers(2, 60, n).astype(np.int32))
    for row, n in enumerate((3, 20, 1, 9, 14, 2, 5, 30))
  ]
  plain = assemble.token_batch(pairs, weighting.token_mean)
  fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
  counted = plain.weights > 0
  return types.RLBatch(
    **fields,
    advantages=(rng.normal(size=(8, 1)) * counted).astype(np.float32),
    rewards=rng.random(8).astype(np.float32),
    baselines=np.full(8, 0.5, np.float32),
    scored=np.ones(8, np.float32),
    questions=np.zeros(8, np.int32),
    correct=np.zeros(8, np.float32),
    accuracy=np.zeros(8, np.float32),
    sampler_logprobs=None,
    old_logprobs=(-4 * counted).astype(np.float32),
    ref_logprobs=(-4.1 * counted).astype(np.float32),
  )


def _gradient(batch, mesh=None, *, remat="none", chunk=64, attention="xla"):
  """The gradient of GSPO's loss: it couples the tokens of a sequence."""
  policy = tiny_run.make_policy(
    ARCHITECTURE,
    without_token=frozenset(),
    attention=attention,
    remat=remat,
    rows=None if mesh is None else sharding.batch_sharding(mesh),
  )
  objective = terms.rl_objective(
    policy,
    numbers=policy_gradient.PolicyGradient(
      clip_low=0.9, clip_high=9.0, kl_coef=0.1
    ),
    temperature=1.2,
    chunk=chunk,
    ratio="sequence",
  )
  base = jax.jit(policy.init)(jax.random.key(0))
  adapter = jax.jit(policy.init_adapter)(jax.random.key(1))
  adapter = jax.tree.map(lambda x: x + 0.05, adapter)
  if mesh is not None:
    base, adapter = (
      jax.device_put(tree, sharding.shardings(tree, mesh))
      for tree in (base, adapter)
    )
    batch = sharding.place_batch(batch, mesh)
  found = jax.jit(accumulation.gradient(objective))(base, adapter, batch)
  assert np.isfinite(found.loss)
  return jax.device_get(found._replace(aux=None))


@pytest.fixture(scope="module")
def expected():
  """Padded rows, at once, on one device, all activations kept."""
  return _gradient(_batch())


def _assert_equal(found, expected):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, expected
  )


def on_mesh(shape):
  """Returns the gradient of packed micro-batches on a mesh."""
  mesh = sharding.make_mesh(*shape, jax.devices()[: int(np.prod(shape))])
  how = packing.Packing(micro_batch_tokens=64, row_multiple=shape[0] * shape[1])
  return _gradient(packing.pack(_batch(), how), mesh)


@pytest.mark.parametrize("shape", MESHES.values(), ids=MESHES)
def test_on_any_number_of_devices(shape, expected):
  _assert_equal(on_mesh(shape), expected)


_EIGHT = """
import pickle, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from tests.training import test_exact
found = test_exact.on_mesh((2, 2, 2))
pickle.dump(jax.tree.leaves(found), open(sys.argv[1], "wb"))
"""


def test_on_eight_devices_and_all_axes(expected, tmp_path):
  """In a process of its own: this one has four devices."""
  file = tmp_path / "gradient"
  done = subprocess.run(
    [sys.executable, "-c", _EIGHT, file],
    cwd=processes.ROOT,
    capture_output=True,
    text=True,
    timeout=processes.PATIENCE_S,
  )
  assert done.returncode == 0, done.stderr
  with file.open("rb") as opened:
    _assert_equal(pickle.load(opened), jax.tree.leaves(expected))


@pytest.mark.parametrize(
  "options",
  [
    {"remat": "everything"},
    {"remat": "attention_and_mlp", "chunk": 8},
    {"attention": "chunked", "chunk": 1},
  ],
  ids=str,
)
@pytest.mark.parametrize("packed", [False, True])
def test_with_any_kernel_chunk_and_rematerialisation(options, packed, expected):
  how = packing.Packing(micro_batch_tokens=48)
  batch = packing.pack(_batch(), how) if packed else _batch()
  _assert_equal(_gradient(batch, **options), expected)


def test_a_mean_of_micro_batch_means_would_be_caught(expected):
  """The negative: weights made for each micro-batch by itself."""
  batch = _batch()
  counted = (batch.weights > 0).astype(np.float32)
  halves = np.zeros_like(counted), np.zeros_like(counted)
  for half, rows in zip(halves, (slice(0, 4), slice(4, 8)), strict=True):
    half[rows] = weighting.token_mean(counted[rows]) / 2
  naive = dataclasses.replace(batch, weights=sum(halves))
  with pytest.raises(AssertionError):
    _assert_equal(_gradient(naive), expected)
