"""The adapter: an identity at the start, the unmerged mathematics after."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bilevel_jax import errors
from bilevel_jax.models import attention, layers, lora, presets
from tests.models import tiny


def _adapter(targets, rank=4):
  return lora.Spec(rank=rank, alpha=8.0, targets=targets)


ROW = tiny.row(np.random.default_rng(0), 96, [13])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fresh_adapter_is_the_identity_to_the_bit(dtype):
  policy = tiny.make("tiny-qwen2", compute_dtype=dtype)
  base, _ = tiny.weights(policy)

  @jax.jit
  def score(adapter):
    hidden = policy.hidden(base, adapter, *ROW)
    return policy.logits(policy.merge(base, adapter), hidden)

  np.testing.assert_array_equal(score(None), score(_fresh("tiny-qwen2")))


def test_the_first_gradient_of_a_is_zero_and_that_of_b_is_not():
  policy = tiny.make()
  base, _ = tiny.weights(policy)
  adapter = _fresh("tiny-qwen3")
  gradient = jax.jit(
    jax.grad(lambda adapter: jnp.sum(policy.hidden(base, adapter, *ROW) ** 3))
  )(adapter)
  for target in tiny.ALL:
    assert not gradient[target]["A"].any()
    assert (jnp.abs(gradient[target]["B"]).max(axis=(1, 2)) > 0).all()


@functools.cache
def _fresh(name):
  return jax.jit(tiny.make(name).init_adapter)(jax.random.key(0))


def _unmerged(architecture, base, adapter, scale, row):
  """The forward pass with x W + scale (x A) B, layer by layer."""
  tokens, positions, segments = row

  def attend(q, k, v):
    return attention.xla(q, k, v, segments), None

  x = base["embedding"][tokens]
  for i in range(architecture.layers):
    layer, factors = jax.tree.map(
      lambda x, i=i: x[i], (base["layers"], adapter)
    )

    def add(method, args, kwargs, context, factors=factors):
      y = method(*args, **kwargs)
      name = context.module.name
      if isinstance(context.module, nn.Dense) and name in factors:
        y += scale * (args[0] @ factors[name]["A"]) @ factors[name]["B"]
      return y

    with nn.intercept_methods(add):
      x, _ = layers.Block(architecture).apply(
        {"params": layer}, x, layers.rotation(positions, architecture), attend
      )
  norm = layers.RMSNorm(architecture.norm_eps)
  return norm.apply({"params": base["final_norm"]}, x)


def test_merging_is_the_unmerged_mathematics():
  policy = tiny.make("tiny-qwen3")
  base, adapter = tiny.weights(policy)
  architecture = presets.get("tiny-qwen3")

  def merged(base, adapter):
    return policy.hidden(base, adapter, *ROW)

  def unmerged(base, adapter):
    return _unmerged(architecture, base, adapter, 8.0 / 4, ROW)

  def run(forward):
    def loss(base, adapter):
      h = forward(base, adapter)
      return jnp.sum(jnp.sin(h)), h

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(base, adapter)

  (grads, h), (expected_grads, expected) = run(merged), run(unmerged)
  np.testing.assert_allclose(h, expected, atol=2e-5)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, atol=2e-5 * max(1.0, float(jnp.abs(y).max()))
    ),
    grads,
    expected_grads,
  )


def test_matrices_that_are_not_targets_are_left_alone():
  policy = tiny.make("tiny-qwen3", adapter=_adapter(("q", "down")))
  base, adapter = tiny.weights(policy)
  assert set(adapter) == {"q", "down"}
  merge = jax.jit(policy.merge)
  plain, merged = merge(base, None), merge(base, adapter)
  for before, after in zip(plain["layers"], merged["layers"], strict=True):
    for name in before:
      same = jax.tree.map(np.array_equal, before[name], after[name])
      assert all(jax.tree.leaves(same)) == (name not in adapter)


def test_norms_are_those_of_the_materialised_matrices():
  policy = tiny.make()
  base, adapter = tiny.weights(policy)
  delta, weight = lora.delta_norm(base, adapter, 2.0)
  products = [2.0 * np.asarray(f["A"] @ f["B"]) for f in adapter.values()]
  kernels = [np.asarray(base["layers"][t]["kernel"]) for t in adapter]
  norm = lambda xs: np.sqrt(sum(np.sum(np.square(x)) for x in xs))
  np.testing.assert_allclose(delta, norm(products), rtol=1e-5)
  np.testing.assert_allclose(weight, norm(kernels), rtol=1e-5)


def test_a_change_of_w_below_bfloat16_counts():
  w = jnp.full((2, 2), 1 + 2**-9, jnp.float32)  # bfloat16 rounds it to 1
  factors = {"A": jnp.full((2, 1), 2**-8.0), "B": jnp.full((1, 2), 0.5)}
  merged = lora.merge_layer({"q": {"kernel": w}}, {"q": factors}, 1.0)
  kernel = merged["q"]["kernel"]
  assert kernel.dtype == jnp.float32
  assert (kernel == 1 + 2**-8).all()


def test_a_starts_as_peft_starts_it():
  policy = tiny.make("small-arithmetic", adapter=_adapter(tiny.ALL, 64))
  adapter = policy.init_adapter(jax.random.key(0))
  a = np.asarray(adapter["down"]["A"])  # [L, in, 64]
  bound = a.shape[1] ** -0.5
  assert np.abs(a).max() <= bound
  np.testing.assert_allclose(a.std(), bound / np.sqrt(3), rtol=0.02)
  assert not np.allclose(adapter["q"]["A"], adapter["k"]["A"])


def test_a_policy_without_an_adapter_has_none_and_takes_none():
  with_one, without = tiny.make(), tiny.make(adapter=None)
  base, adapter = tiny.weights(with_one)
  same = jax.tree.map(
    np.array_equal, with_one.merge(base, None), without.merge(base, None)
  )
  assert all(jax.tree.leaves(same))
  with pytest.raises(ValueError, match="made without an adapter"):
    without.init_adapter(jax.random.key(0))
  assert np.isnan(without.hidden(base, adapter, *ROW)).all()


@pytest.mark.parametrize("targets", [("q", "query"), (), ("q", "q")])
def test_targets_that_do_not_exist_are_refused_by_name(targets):
  received = ", ".join(targets) or "none"
  with pytest.raises(errors.ConfigError, match=rf"q, k, v, o.*got {received}"):
    tiny.make(adapter=_adapter(targets))
