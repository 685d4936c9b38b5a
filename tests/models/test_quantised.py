"""Blocks of few bits: their table, their error, what is computed of them."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax.models import lora, presets, quantised
from tests.models import tiny

KINDS = ("int8", "nf4")
ROW = tiny.row(np.random.default_rng(0), 96, [13, 5])
ALL = lora.Spec(rank=4, alpha=8.0, targets=tiny.ALL)
# Of a kernel whose inputs are no multiple of 64, too.
SHAPES = [(2, 128, 24), (3, 48, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_nearest_value_of_each_block_is_taken(kind, shape):
  """In float64, by trying every value."""
  w = np.random.default_rng(0).normal(size=shape)
  kept = quantised.freeze("layers/q/kernel", jnp.asarray(w, jnp.float32), kind)
  size = 64 if shape[1] % 64 == 0 else 16
  blocks = w.reshape(shape[0], -1, size, shape[2])
  most = np.abs(blocks).max(axis=2, keepdims=True)
  steps = np.arange(-127, 128) / 127
  book = steps if kind == "int8" else np.array(quantised.CODE_BOOK)
  nearest = np.abs(blocks[..., None] / most[..., None] - book).argmin(axis=-1)
  np.testing.assert_allclose(
    quantised.expand(kept), (book[nearest] * most).reshape(shape), atol=1e-6
  )
  taken = sum(x.nbytes for x in jax.tree.leaves(kept))
  assert taken == w.size * {"int8": 1, "nf4": 0.5}[kind] + 4 * most.size


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_of_zeros_is_zeros(kind):
  w = jnp.zeros((1, 64, 2)).at[0, 3, 1].set(-2.0)
  kept = quantised.freeze("layers/q/kernel", w, kind)
  np.testing.assert_array_equal(quantised.expand(kept), w)


def test_the_table_is_that_of_bitsandbytes():
  """As its functional.py prints it; appendix E of arXiv:2305.14314."""
  published = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
    *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
  ]
  assert list(quantised.CODE_BOOK) == published
  spec = importlib.util.find_spec("bitsandbytes")
  if spec is not None and spec.origin is not None:
    text = (pathlib.Path(spec.origin).parent / "functional.py").read_text()
    assert all(f"{value}," in text for value in published if value % 1)


def _frozen(kind, dtype="float32"):
  policy = tiny.make(
    "tiny-qwen2",
    adapter=None,
    trained=ALL,
    base_dtype=kind,
    compute_dtype=dtype,
  )
  base, factors = tiny.weights(tiny.make("tiny-qwen2"))
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  kept = jax.tree_util.tree_map_with_path(
    lambda path, x: policy.freeze(name(path), x), base
  )
  expanded = {**kept, "layers": quantised.expand_layer(kept["layers"])}
  return policy, kept, expanded, factors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_pass_is_that_of_the_expanded_weights(kind, dtype):
  """To the bit; gradients of the factors to rounding."""
  policy, kept, expanded, factors = _frozen(kind, dtype)

  @jax.jit
  def run(base):
    def loss(factors):
      h = policy.over(base).hidden(factors, None, *ROW)
      return jnp.sum(jnp.sin(h.astype(jnp.float32))), h

    return jax.grad(loss, has_aux=True)(factors)

  (by, h), (expected_by, expected) = run(kept), run(expanded)
  np.testing.assert_array_equal(h, expected)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-4),
    by,
    expected_by,
  )


@pytest.mark.parametrize("kind", KINDS)
def test_the_sampler_computes_what_the_learner_does(kind):
  policy, kept, _, factors = _frozen(kind)
  over = policy.over(kept)
  tokens, positions, _ = (x[:, :13] for x in ROW)
  segments = np.ones_like(tokens)
  weights = jax.jit(over.merge)(factors, None)
  cache = policy.init_cache(1, 16)
  first = np.zeros(1, np.int32)
  expected = over.hidden(factors, None, tokens, positions, segments)
  h, cache = policy.extend(
    weights, cache, tokens[:, :9], positions[:, :9], 0, first
  )
  np.testing.assert_allclose(h, expected[:, :9], atol=2e-5)
  for t in range(9, 13):
    at = slice(t, t + 1)
    h, cache = policy.extend(
      weights, cache, tokens[:, at], positions[:, at], t, first
    )
    np.testing.assert_allclose(h, expected[:, at], atol=2e-5)


def test_no_layer_is_expanded_before_it_is_reached():
  """Neither in the update's program nor in a loop over tokens."""
  architecture = presets.get("tiny-qwen2")
  policy, kept, _, factors = _frozen("int8")

  @jax.jit
  def gradient(kept, factors):
    loss = lambda f: jnp.sum(policy.over(kept).hidden(f, None, *ROW) ** 2)
    return jax.grad(loss)(factors)

  text = gradient.lower(kept, factors).compile().as_text()
  assert "s8[2,32,64]" in text
  assert "f32[2,32,64]" not in text

  @jax.jit
  def decode(weights, cache):
    def one(t, carry):
      x, cache = carry
      token = x[:, -1:].astype(jnp.int32) % architecture.vocab_size
      h, cache = policy.extend(
        weights, cache, token[..., 0], t[None, None], t, jnp.zeros(1, jnp.int32)
      )
      return h, cache

    start = jnp.zeros((1, 1, architecture.width))
    return jax.lax.fori_loop(0, 8, one, (start, cache))

  weights = policy.over(kept).merge(factors, None)
  lowered = decode.lower(weights, policy.init_cache(1, 8))
  carried = [
    line
    for line in lowered.compile().as_text().splitlines()
    if " while(" in line
  ]
  assert carried
  assert all("s8[32,64]" in line for line in carried)
  assert not any("f32[32,64]" in line for line in carried)
