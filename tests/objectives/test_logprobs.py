"""Chunked log-probs against the dense form, to second order."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax.objectives import logprobs

ROWS, COLUMNS, WIDTH, VOCABULARY = 3, 11, 8, 17


def _inputs():
  keys = jax.random.split(jax.random.key(0), 3)
  hidden = jax.random.normal(keys[0], (ROWS, COLUMNS, WIDTH))
  unembedding = jax.random.normal(keys[1], (WIDTH, VOCABULARY))
  tokens = jax.random.randint(keys[2], (ROWS, COLUMNS), 0, VOCABULARY)
  return hidden, unembedding, tokens


def _dense(hidden, unembedding, tokens, temperature):
  logits = hidden[:, :-1] @ unembedding / temperature
  logp = jax.nn.log_softmax(logits)
  picked = jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
  entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
  pad = lambda x: jnp.pad(x, ((0, 0), (1, 0)))
  return pad(picked), pad(entropy)


@pytest.mark.parametrize("chunk", [1, 6, 12, 10_000])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3])
def test_chunks_agree_with_the_dense_form(chunk, temperature):
  hidden, unembedding, tokens = _inputs()
  actual = logprobs.token_logprobs(
    hidden,
    unembedding,
    tokens,
    temperature=temperature,
    chunk=chunk,
    with_entropy=True,
  )
  expected = _dense(hidden, unembedding, tokens, temperature)
  chex.assert_trees_all_close(actual, expected, atol=1e-5)
  np.testing.assert_array_equal(actual[0][:, 0], 0.0)


def test_gradient_and_second_derivative_agree_with_the_dense_form():
  hidden, unembedding, tokens = _inputs()

  def loss(function):
    return lambda h, u: jnp.sum(jnp.sin(function(h, u)))

  chunked = loss(lambda h, u: logprobs.token_logprobs(h, u, tokens, chunk=9)[0])
  dense = loss(lambda h, u: _dense(h, u, tokens, 1.0)[0])
  for derivative in (
    lambda f: jax.grad(f, argnums=(0, 1))(hidden, unembedding),
    lambda f: jax.jvp(
      jax.grad(f), (hidden, unembedding), (hidden, unembedding)
    )[1],
    lambda f: jax.grad(lambda u: jnp.sum(jax.grad(f)(hidden, u) ** 2))(
      unembedding
    ),
  ):
    chex.assert_trees_all_close(
      derivative(chunked), derivative(dense), rtol=1e-4, atol=1e-5
    )


def test_entropy_carries_no_gradient():
  hidden, unembedding, tokens = _inputs()
  gradient = jax.grad(
    lambda h: logprobs.token_logprobs(
      h, unembedding, tokens, with_entropy=True
    )[1].sum()
  )(hidden)
  np.testing.assert_array_equal(gradient, 0.0)


def test_logits_of_all_positions_are_never_in_memory():
  """At a vocabulary of 32k, the gradient's scratch stays near one chunk."""
  rows, columns, width, vocabulary, chunk = 4, 512, 32, 32_768, 128
  shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)

  def loss(hidden, unembedding, tokens):
    return logprobs.token_logprobs(hidden, unembedding, tokens, chunk=chunk)[
      0
    ].sum()

  compiled = (
    jax.jit(jax.grad(loss, argnums=(0, 1)))
    .lower(
      shape(rows, columns, width),
      shape(width, vocabulary),
      shape(rows, columns, dtype=jnp.int32),
    )
    .compile()
  )
  scratch = compiled.memory_analysis().temp_size_in_bytes
  dense = rows * columns * vocabulary * 4
  assert scratch < dense / 2
