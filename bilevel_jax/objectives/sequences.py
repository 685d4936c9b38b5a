"""Sums over the sequence that a token is in; a row may hold several.

A sequence is a run of columns with one segment id; what is summed is 0 on
columns that do not count. Ours: by differences of one cumulative sum.
"""

import chex
import jax
import jax.numpy as jnp

from bilevel_jax.types import Array


def total(x: Array, segment_ids: Array) -> jax.Array:
  """Returns [B, T], each column's sum over all of its sequence.

  Args:
    x: [B, T].
    segment_ids: [B, T] int32.
  """
  return after(x, segment_ids) + _upto(x, segment_ids)


def after(x: Array, segment_ids: Array) -> jax.Array:
  """Returns [B, T], each column's sum over what follows it in its sequence.

  Args:
    x: [B, T].
    segment_ids: [B, T] int32.
  """
  flipped = _upto(x[:, ::-1], segment_ids[:, ::-1])[:, ::-1]
  return flipped - x


def mean(x: Array, mask: Array, segment_ids: Array) -> jax.Array:
  """Returns [B, T], each column's mean over what counts of its sequence.

  Args:
    x: [B, T].
    mask: [B, T], 1 where it counts; a sequence without any has mean 0.
    segment_ids: [B, T] int32.
  """
  count = total(mask, segment_ids).clip(min=1)
  return total(jnp.where(mask > 0, x, 0.0), segment_ids) / count


def _upto(x: Array, segment_ids: Array) -> jax.Array:
  """Returns [B, T], the sum over the sequence up to and with each column."""
  chex.assert_rank(x, 2)
  chex.assert_equal_shape([x, segment_ids])
  sums = jnp.cumsum(x, axis=1)
  columns = jnp.arange(x.shape[1])[None, :]
  begins = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1] - 1) != 0
  start = jax.lax.cummax(jnp.where(begins, columns, 0), axis=1)
  before = jnp.pad(sums, ((0, 0), (1, 0)))
  return sums - jnp.take_along_axis(before, start, axis=1)
