"""Cached decoding is the full forward pass, whatever the cache held before."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import tiny

LENGTHS, PROMPT, TOTAL, COLUMNS = (10, 4, 7), 10, 18, 24


def _rows():
  """Three left-padded prompts of unequal lengths, then the same columns."""
  tokens = np.random.default_rng(0).integers(1, 96, (3, TOTAL)).astype(np.int32)
  first = np.asarray([PROMPT - n for n in LENGTHS], np.int32)
  columns = np.arange(TOTAL, dtype=np.int32)[None]
  positions = np.maximum(columns - first[:, None], 0)
  segments = (columns >= first[:, None]).astype(np.int32)
  return tokens, positions, segments, first


def _decode(policy, weights, cache, chunks):
  """Returns hidden states of all columns, a chunk at a time."""
  tokens, positions, _, first = _rows()
  extend = jax.jit(policy.extend, donate_argnums=1)
  states, start = [], 0
  for n in chunks:
    at = slice(start, start + n)
    h, cache = extend(
      weights, cache, tokens[:, at], positions[:, at], np.int32(start), first
    )
    states.append(h)
    start += n
  assert start == TOTAL
  return jnp.concatenate(states, axis=1), cache


@functools.cache
def _case(name):
  policy = tiny.make(name)
  base, adapter = tiny.weights(policy)
  tokens, positions, segments, _ = _rows()
  full = jax.jit(policy.hidden)(base, adapter, tokens, positions, segments)
  return policy, jax.jit(policy.merge)(base, adapter), full, segments == 1


@pytest.mark.parametrize("name", tiny.NAMES)
def test_prefill_and_token_by_token_equal_the_full_forward(name):
  policy, weights, full, real = _case(name)
  chunks = [PROMPT] + [1] * (TOTAL - PROMPT)
  states, _ = _decode(policy, weights, policy.init_cache(3, COLUMNS), chunks)
  np.testing.assert_allclose(states[real], full[real], atol=1e-5)


@pytest.mark.parametrize("chunks", [[6, 6, 6], [10, 8]])
def test_chunked_prefill_equals_the_full_forward(chunks):
  policy, weights, full, real = _case("tiny-qwen3")
  states, _ = _decode(policy, weights, policy.init_cache(3, COLUMNS), chunks)
  np.testing.assert_allclose(states[real], full[real], atol=1e-5)


def test_what_an_earlier_request_left_in_the_cache_is_not_seen():
  policy, weights, full, real = _case("tiny-qwen2")
  rng = np.random.default_rng(1)
  used = jax.tree.map(
    lambda x: jnp.asarray(50 * rng.normal(size=x.shape), x.dtype),
    policy.init_cache(3, COLUMNS),
  )
  chunks = [PROMPT] + [1] * (TOTAL - PROMPT)
  states, _ = _decode(policy, weights, used, chunks)
  np.testing.assert_allclose(states[real], full[real], atol=1e-5)
  assert jnp.isfinite(states).all()


def test_a_row_does_not_depend_on_its_neighbours():
  policy, weights, _, _ = _case("tiny-qwen3")
  tokens, positions, _, first = _rows()
  extend = jax.jit(policy.extend)
  states, _ = extend(
    weights, policy.init_cache(3, COLUMNS), tokens, positions, 0, first
  )
  tokens = tokens.copy()
  tokens[[0, 2]] += 1
  others, _ = extend(
    weights, policy.init_cache(3, COLUMNS), tokens, positions, 0, first
  )
  np.testing.assert_array_equal(states[1], others[1])
  assert not np.array_equal(states[0], others[0])


def test_sampler_logits_equal_the_learners():
  policy, weights, full, real = _case("tiny-llama")
  base, _ = tiny.weights(policy)
  states, _ = _decode(policy, weights, policy.init_cache(3, COLUMNS), [18])
  sampler = policy.logits(weights, states)[real]
  learner = jnp.einsum("btd,dv->btv", full, policy.unembedding(base))[real]
  np.testing.assert_allclose(sampler, learner, atol=5e-5)


def test_the_cache_is_in_the_compute_dtype_one_pair_per_layer():
  policy = tiny.make("tiny-qwen3", compute_dtype="bfloat16")
  cache = policy.init_cache(3, COLUMNS)
  assert len(cache) == 2
  for k, v in cache:
    assert k.shape == (3, 2, 8, COLUMNS)
    assert v.shape == (3, 2, COLUMNS, 8)
    assert k.dtype == v.dtype == jnp.bfloat16
  base, adapter = tiny.weights(policy)
  states, after = _decode(policy, policy.merge(base, adapter), cache, [10, 8])
  assert states.dtype == jnp.bfloat16
  assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(
    lambda x: jnp.dtype("bfloat16"), after
  )
