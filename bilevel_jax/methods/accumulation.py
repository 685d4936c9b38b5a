"""Micro-batches: exact, because every token's weight is global.

A batch's packed says which of its rows each micro-batch computes. For the
others it is as if they were empty, so a micro-batch's loss is its share of the
batch's, and the shares are added up. The loop ends with the last micro-batch
that holds anything: what a step costs follows its tokens, with one program.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from bilevel_jax.bilevel import problem
from bilevel_jax.types import TokenBatch, Tree

_Batch = TypeVar("_Batch", bound=TokenBatch)


def gradient(objective: problem.Objective) -> problem.GradientFunction:
  """Returns `bilevel.problem.gradient`, one micro-batch at a time.

  Args:
    objective: function of (base, adapter, batch) whose aux has a row for each
      row of the batch.
  """
  whole = problem.gradient(objective)

  def accumulated(base: Tree, adapter: Tree, batch: TokenBatch):
    found, aux = map_micro_batches(
      lambda part: _sums_and_rows(whole(base, adapter, part)), batch
    )
    return found._replace(aux=aux)

  return accumulated


def map_micro_batches(
  function: Callable[[_Batch], tuple[Tree, Tree]], batch: _Batch
) -> tuple[Tree, Tree]:
  """Returns (sums over the micro-batches, rows put together again).

  Args:
    function: part -> (what is to be added up, arrays with a row for each row
      of the batch). Arrays of rows that no micro-batch computes are zero.
    batch: rows; where they are not packed, or with one micro-batch, the
      function sees the batch as it is.
  """
  packed = batch.packed
  if packed is None or packed.tokens.shape[0] == 1:
    return function(batch)

  def add(number: jax.Array, totals: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    part, members = _part(batch, number)
    sums, rows = function(part)
    return (
      jax.tree.map(jnp.add, totals[0], sums),
      jax.tree.map(
        lambda row, kept: jnp.where(_over(members, row), row, kept),
        rows,
        totals[1],
      ),
    )

  empty = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(lambda: function(_part(batch, 0)[0])),
  )
  return jax.lax.fori_loop(0, packed.used, add, empty)


def _part(
  batch: _Batch, number: jax.typing.ArrayLike
) -> tuple[_Batch, jax.Array]:
  """A micro-batch, its other rows empty; and which rows are its own, [B]."""
  packed = batch.packed
  assert packed is not None
  size = packed.columns[0].size
  where = jnp.asarray(packed.where)
  own = (where >= 0) & (where // size == number)
  members = own.any(axis=1)
  pick = lambda x: jax.lax.dynamic_slice_in_dim(x, number, 1, axis=0)
  moved = dataclasses.replace(
    jax.tree.map(pick, dataclasses.replace(packed, where=None, used=None)),
    where=jnp.where(own, where % size, -1),
    used=jnp.ones_like(packed.used),
  )
  rows = jax.tree.map(
    lambda x: (
      jnp.where(_over(members, x), x, jnp.zeros_like(x)) if x.ndim else x
    ),
    dataclasses.replace(batch, packed=None),
  )
  return dataclasses.replace(rows, packed=moved), members


def _sums_and_rows(found: problem.Gradient) -> tuple[problem.Gradient, Tree]:
  return found._replace(aux=None), found.aux


def _over(rows: jax.Array, x: jax.Array) -> jax.Array:
  """[B] as [B, 1, ...], beside x."""
  return jnp.reshape(rows, (*rows.shape, *(1,) * (x.ndim - 1)))
