"""Where the rows of a batch live: on one device, or spread over a mesh."""

from typing import NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from bilevel_jax import processes, types


class RowSharding(NamedTuple):
  """Rows over the devices as `rows` says; None leaves all on one device.

  Hashable, so that it can be static.
  """

  rows: NamedSharding | None

  @property
  def shards(self) -> int:
    """Parts that rows are split into; a batch has a multiple of it."""
    if self.rows is None:
      return 1
    devices = self.rows.num_devices
    return devices // self.rows.shard_shape((devices,))[0]

  def put_rows(self, tree: types.Tree, axis: int = 0) -> types.Tree:
    """Returns host arrays on the devices, split along `axis`."""
    if self.rows is None:
      return tree
    spec = PartitionSpec(*(None,) * axis, self.rows.spec[0])
    return processes.put(tree, NamedSharding(self.rows.mesh, spec))

  def split_rows(self, tree: types.Tree) -> types.Tree:
    """Returns traced arrays, axis 0 split; the compiler lays out the rest."""
    if self.rows is None:
      return tree
    mesh, axes = self.rows.mesh, self.rows.spec[0]

    def split(leaf):
      free = (PartitionSpec.UNCONSTRAINED,) * (leaf.ndim - 1)
      sharding = NamedSharding(mesh, PartitionSpec(axes, *free))
      return jax.lax.with_sharding_constraint(leaf, sharding)

    return jax.tree.map(split, tree)

  def gather(self, tree: types.Tree) -> types.Tree:
    """Returns traced arrays, a copy on each device: any process reads all."""
    if self.rows is None:
      return tree
    everywhere = NamedSharding(self.rows.mesh, PartitionSpec())
    return jax.lax.with_sharding_constraint(tree, everywhere)
