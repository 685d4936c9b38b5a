"""Attention against a slow loop, and the kernels against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import errors
from bilevel_jax.models import attention

SEGMENTS = np.asarray(
  [[1] * 7 + [2] * 11 + [0] * 5, [0] * 4 + [1] * 19], np.int32
)


def _inputs(dtype=np.float32):
  rng = np.random.default_rng(0)
  shapes = [(2, 23, 4, 8), (2, 23, 2, 8), (2, 23, 2, 8)]
  return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


def _slow(q, k, v, segments):
  """One query and one key at a time, over the tokens that are not padding."""
  out = np.zeros(q.shape)
  for b, t, n in np.ndindex(*q.shape[:3]):
    group = n // (q.shape[2] // k.shape[2])
    seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
    scores = [np.exp(q[b, t, n] @ k[b, s, group] / np.sqrt(8)) for s in seen]
    mixed = sum(p * v[b, s, group] for p, s in zip(scores, seen, strict=True))
    out[b, t, n] = mixed / sum(scores)
  return out


@pytest.mark.parametrize("chunk", [None, 4, 8, 23, 64])
def test_kernels_equal_a_slow_loop(chunk):
  with jax.enable_x64(True):
    inputs = _inputs(np.float64)
    if chunk is None:
      mixed = attention.xla(*inputs, SEGMENTS)
    else:
      mixed = attention.chunked(*inputs, SEGMENTS, chunk=chunk)
    assert mixed.dtype == jnp.float64
    expected = _slow(*(np.asarray(x) for x in inputs), SEGMENTS)
    np.testing.assert_allclose(mixed, expected, atol=1e-12)


def test_chunked_has_the_gradient_and_the_second_derivative_of_xla():
  with jax.enable_x64(True):
    inputs = tuple(_inputs(np.float64))
    rng = np.random.default_rng(1)
    direction = tuple(jnp.asarray(rng.normal(size=x.shape)) for x in inputs)

    def derivatives(kernel, **options):
      def loss(inputs):
        return jnp.sum(jnp.tanh(kernel(*inputs, SEGMENTS, **options)) ** 2)

      def both(inputs, direction):
        return jax.jvp(jax.grad(loss), (inputs,), (direction,))

      return loss, jax.jit(both)(inputs, direction)

    _, dense = derivatives(attention.xla)
    loss, chunked = derivatives(attention.chunked, chunk=8)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12), dense, chunked
    )
    loss, step = jax.jit(loss), 1e-5
    move = lambda s: jax.tree.map(lambda x, d: x + s * d, inputs, direction)
    above, here, below = loss(move(step)), loss(inputs), loss(move(-step))
    gradient, product = (
      sum(jnp.vdot(x, d) for x, d in zip(xs, direction, strict=True))
      for xs in chunked
    )
    np.testing.assert_allclose((above - below) / (2 * step), gradient, 1e-7)
    np.testing.assert_allclose(
      (above - 2 * here + below) / step**2, product, rtol=1e-4
    )


def test_the_memory_of_chunked_is_linear_in_the_length():
  def memory(length):
    q = jax.ShapeDtypeStruct((1, length, 4, 8), jnp.float32)
    kv = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
    ids = np.ones((1, length), np.int32)
    kernel = functools.partial(attention.chunked, chunk=32)
    loss = lambda q, k, v: jnp.sum(kernel(q, k, v, ids) ** 2)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    program = gradient.lower(q, kv, kv).compile()
    return program.memory_analysis().temp_size_in_bytes

  assert memory(2048) < 2.2 * memory(1024)


@pytest.mark.parametrize(
  "kernel", [attention.xla, functools.partial(attention.chunked, chunk=4)]
)
def test_padding_is_finite_and_gives_finite_gradients(kernel):
  inputs = _inputs(jnp.bfloat16)
  nothing = np.zeros((2, 23), np.int32)

  @jax.jit
  def run(ids, *inputs):
    mixed, pull = jax.vjp(lambda *x: kernel(*x, ids), *inputs)
    return mixed, *pull(mixed)

  for ids in (SEGMENTS, nothing):
    for x in run(ids, *inputs):
      assert x.dtype == jnp.bfloat16
      assert jnp.isfinite(x).all()


def test_large_scores_do_not_overflow():
  q, k, v = _inputs()
  for kernel in (attention.xla, attention.chunked):
    assert jnp.isfinite(kernel(1e4 * q, 1e4 * k, v, SEGMENTS)).all()


def test_the_choice_of_kernel_follows_the_backend():
  assert attention.choose("auto", "cpu", "float32") == "xla"
  assert attention.choose("auto", "gpu", "bfloat16") == "chunked"
  assert attention.choose("cudnn", "gpu", jnp.bfloat16) == "cudnn"
  assert "cudnn" not in attention.SECOND_ORDER
  assert set(attention.KERNELS) >= attention.SECOND_ORDER


@pytest.mark.parametrize(
  ("backend", "dtype"), [("cpu", "bfloat16"), ("gpu", "float32")]
)
def test_cudnn_is_refused_where_it_cannot_run(backend, dtype):
  with pytest.raises(errors.ConfigError, match=rf"GPU.*got {backend} and"):
    attention.choose("cudnn", backend, dtype)


def test_an_unknown_kernel_is_answered_with_the_choices():
  with pytest.raises(errors.ConfigError, match=r"auto, xla.*got 'flash'"):
    attention.choose("flash", "gpu", "bfloat16")
