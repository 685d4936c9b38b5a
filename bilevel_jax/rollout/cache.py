"""The sizes that caches come in, and how one is moved to another size."""

import functools

import jax
import jax.numpy as jnp

from bilevel_jax import types

UNCONSTRAINED = jax.sharding.PartitionSpec.UNCONSTRAINED


def bucket(n: int, *, step: int = 1, per_octave: int = 2) -> int:
  """Returns the least size of the ladder that is at least n.

  Between two powers of two there are `per_octave` sizes, all multiples of
  `step`, so that the programs compiled for them grow as log n.
  """
  octave = 1 << max(n - 1, 0).bit_length()
  step = max(step, octave // (2 * per_octave))
  return max(-(-n // step), 1) * step


def bytes_per_row(policy: types.Policy, columns: int) -> int:
  """Returns the bytes that one row of so many columns takes in the cache."""
  leaves = jax.tree.leaves(
    jax.eval_shape(lambda: policy.init_cache(1, columns))
  )
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def constrain(
  cache: types.Tree, sharding: jax.sharding.NamedSharding | None
) -> types.Tree:
  """Returns the cache with its rows laid out as `sharding`, the rest free."""
  if sharding is None:
    return cache

  def rows(leaf):
    free = (UNCONSTRAINED,) * (leaf.ndim - 1)
    spec = jax.sharding.PartitionSpec(sharding.spec[0], *free)
    return jax.lax.with_sharding_constraint(
      leaf, jax.sharding.NamedSharding(sharding.mesh, spec)
    )

  return jax.tree.map(rows, cache)


def move(
  cache: types.Tree,
  rows: types.Array,
  columns: int,
  sharding: jax.sharding.NamedSharding | None = None,
) -> types.Tree:
  """Returns the given rows of a cache, widened to `columns` with zeros.

  Leaf by leaf, each freed once it is moved: a growing cache is never held
  twice.

  Args:
    cache: arrays with rows on axis 0 and columns on axis 1; deleted.
    rows: [B] int32, the row that each new row is a copy of.
    columns: at least as many as there are.
    sharding: of the new rows.
  """

  def one(leaf):
    moved = _move(leaf, rows, columns, sharding)
    leaf.delete()
    return moved

  return jax.tree.map(one, cache)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _move(leaf, rows, columns, sharding):
  grown = [(0, 0)] * leaf.ndim
  grown[1] = (0, columns - leaf.shape[1])
  return constrain(jnp.pad(leaf[rows], grown), sharding)
