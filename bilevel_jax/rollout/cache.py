"""What caches take, and how one is moved to another size."""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax import processes, types
from bilevel_jax.rollout.row_sharding import RowSharding

# The rest is for merged weights, logits, and a leaf of the cache that moves.
SHARE_OF_FREE = 0.6
_SHARE_OF_HOST = 0.25
_CONTAINER_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")


def bytes_per_row(policy: types.Policy, columns: int) -> int:
  """Returns the bytes that one row of so many columns takes in the cache."""
  cache = jax.eval_shape(lambda: policy.init_cache(1, columns))
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))


def default_bytes(devices: Sequence[Any]) -> int:
  """Returns the bytes that a cache may take on each of the devices.

  0.6 of what is free on the fullest one now. Devices that do not say, as
  CPUs, share 0.25 of the memory of their host, or of its container. The same
  in every process, since all must make batches of the same shapes.

  Args:
    devices: those that rows are spread over.
  """
  mine = [d for d in devices if d.process_index == jax.process_index()]
  stats = [device.memory_stats() or {} for device in mine]
  if stats and all("bytes_limit" in s and "bytes_in_use" in s for s in stats):
    free = min(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
    mebibytes = SHARE_OF_FREE * free / 2**20
  else:
    mebibytes = _SHARE_OF_HOST * _host_bytes() / max(len(mine), 1) / 2**20
  return int(processes.gather(np.int32(mebibytes)).min()) * 2**20


def _host_bytes():
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  if _CONTAINER_LIMIT.exists():
    limit = _CONTAINER_LIMIT.read_text().strip()
    if limit.isdecimal():  # and not "max"
      memory = min(memory, int(limit))
  return memory


def column_axes(policy: types.Policy) -> types.Tree:
  """Returns the axis that holds the columns, of each array of a cache."""
  shapes = [jax.eval_shape(lambda n=n: policy.init_cache(1, n)) for n in (1, 2)]
  differ = lambda x, y: int(np.not_equal(x.shape, y.shape).argmax())
  return jax.tree.map(differ, *shapes)


def move(
  cache: types.Tree,
  rows: types.Array,
  columns: int,
  *,
  axes: types.Tree,
  row_sharding: RowSharding,
) -> types.Tree:
  """Returns the given rows of a cache, widened to `columns` with zeros.

  Leaf by leaf, each freed once it is moved: a cache is never held twice.

  Args:
    rows: [B] int32, the row that each new row is a copy of.
    columns: at least as many as there are.
  """

  def one(leaf, axis):
    moved = _move(leaf, rows, columns, axis, row_sharding)
    leaf.delete()
    return moved

  return jax.tree.map(one, cache, axes)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _move(leaf, rows, columns, axis, row_sharding):
  wider = [(0, 0)] * leaf.ndim
  wider[axis] = (0, columns - leaf.shape[axis])
  return row_sharding.split_rows(jnp.pad(leaf[rows], wider))
