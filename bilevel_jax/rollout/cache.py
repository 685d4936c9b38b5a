"""The sizes that caches come in, and how one is moved to another size."""

import functools

import jax
import jax.numpy as jnp

from bilevel_jax import types
from bilevel_jax.rollout import layout as layouts


def bucket(n: int, *, step: int = 1, per_octave: int = 2) -> int:
  """Returns the least size of the ladder that is at least n.

  Between two powers of two there are `per_octave` sizes, all multiples of
  `step`, so that the programs compiled for them grow as log n.

  Args:
    n: rows or columns needed.
    step: a power of two; the least size, and the least gap.
    per_octave: a power of two.
  """
  octave = 1 << max(n - 1, 0).bit_length()
  step = max(step, octave // (2 * per_octave))
  return max(-(-n // step), 1) * step


def bytes_per_row(policy: types.Policy, columns: int) -> int:
  """Returns the bytes that one row of so many columns takes in the cache."""
  cache = jax.eval_shape(lambda: policy.init_cache(1, columns))
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))


def move(
  cache: types.Tree,
  rows: types.Array,
  columns: int,
  *,
  layout: layouts.Layout,
) -> types.Tree:
  """Returns the given rows of a cache, widened to `columns` with zeros.

  Leaf by leaf, each freed once it is moved: a cache is never held twice.

  Args:
    cache: arrays with rows on axis 0 and columns on axis 1; deleted.
    rows: [B] int32, the row that each new row is a copy of.
    columns: at least as many as there are.
    layout: of the new rows.
  """

  def one(leaf):
    moved = _move(leaf, rows, columns, layout)
    leaf.delete()
    return moved

  return jax.tree.map(one, cache)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _move(leaf, rows, columns, layout):
  wider = [(0, 0)] * leaf.ndim
  wider[1] = (0, columns - leaf.shape[1])
  return layout.split_rows(jnp.pad(leaf[rows], wider))
