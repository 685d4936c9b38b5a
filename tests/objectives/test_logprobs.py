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


@pytest.mark.parametrize("with_entropy", [False, True])
def test_memory_is_that_of_one_chunk_of_logits(with_entropy):
  """At a vocabulary of 152k and 32k tokens, by the compiler's analysis."""
  rows, columns, width, vocabulary, chunk = 8, 4096, 64, 151_936, 1024
  shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)

  def loss(hidden, unembedding, tokens):
    found = logprobs.token_logprobs(
      hidden, unembedding, tokens, chunk=chunk, with_entropy=with_entropy
    )
    return found[0].sum(), found[1]

  for function in (loss, jax.grad(loss, argnums=(0, 1), has_aux=True)):
    compiled = (
      jax.jit(function)
      .lower(
        shape(rows, columns, width),
        shape(width, vocabulary),
        shape(rows, columns, dtype=jnp.int32),
      )
      .compile()
    )
    scratch = compiled.memory_analysis().temp_size_in_bytes
    assert scratch < 1.1 * chunk * vocabulary * 4


def test_rows_on_four_devices_change_nothing():
  """Values, gradient and second derivative, against one device."""
  mesh = jax.make_mesh(
    (2, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  spec = jax.sharding.PartitionSpec(("data", "fsdp"))
  rows = jax.sharding.NamedSharding(mesh, spec)
  hidden, unembedding, tokens = _inputs()
  hidden, tokens = (
    jnp.concatenate([x, x[::-1], x[:2]]) for x in (hidden, tokens)
  )

  def moments(rows):
    def loss(inputs):
      found = logprobs.token_logprobs(
        *inputs, tokens, chunk=9, rows=rows, with_entropy=True
      )
      return jnp.sum(jnp.sin(found[0])), found

    gradient = jax.grad(loss, has_aux=True)
    inputs = (hidden, unembedding)
    return jax.jit(lambda x: jax.jvp(gradient, (x,), (x,)))(inputs)

  chex.assert_trees_all_close(
    moments(rows), moments(None), rtol=1e-4, atol=1e-5
  )
