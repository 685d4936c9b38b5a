"""Where arrays live: a mesh, and strict rules from names to its axes."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from bilevel_jax import errors, processes, types

AXES = ("data", "fsdp", "tensor")

Rules = Sequence[tuple[str, PartitionSpec]]
Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh

# The first pattern that is found in a leaf's path wins. Optimiser states have
# the same path endings as what they move, so the same rules serve them. `o`
# and `down` read what the tensor axis has split; the others make it.
RULES: Rules = (
  (r"(^|/)embedding$", PartitionSpec("tensor", "fsdp")),
  (r"(^|/)head/kernel$", PartitionSpec("fsdp", "tensor")),
  (
    r"(^|/)layers/(q|k|v|gate|up)/kernel$",
    PartitionSpec(None, "fsdp", "tensor"),
  ),
  (r"(^|/)layers/(o|down)/kernel$", PartitionSpec(None, "tensor", "fsdp")),
  # Of a quantised base. There are too few scales to split them by blocks.
  (
    r"(^|/)layers/(q|k|v|gate|up)/kernel/(int8|nf4)$",
    PartitionSpec(None, "fsdp", "tensor"),
  ),
  (
    r"(^|/)layers/(o|down)/kernel/(int8|nf4)$",
    PartitionSpec(None, "tensor", "fsdp"),
  ),
  (
    r"(^|/)layers/(q|k|v|gate|up)/kernel/scales$",
    PartitionSpec(None, None, "tensor"),
  ),
  (
    r"(^|/)layers/(o|down)/kernel/scales$",
    PartitionSpec(None, None, "fsdp"),
  ),
  (r"(^|/)layers/(q|k|v)/bias$", PartitionSpec(None, "tensor")),
  (
    r"(^|/)(attention_norm|mlp_norm|q_norm|k_norm|final_norm)/scale$",
    PartitionSpec(),
  ),
  (r"(^|/)ns_coeffs$", PartitionSpec()),  # Muon's polynomial
  (r"(^|/)(q|k|v|gate|up)/A$", PartitionSpec(None, "fsdp", None)),
  (r"(^|/)(q|k|v|gate|up)/B$", PartitionSpec(None, None, "tensor")),
  (r"(^|/)(o|down)/A$", PartitionSpec(None, "tensor", None)),
  (r"(^|/)(o|down)/B$", PartitionSpec(None, None, "fsdp")),
)


def make_mesh(
  data: int, fsdp: int, tensor: int, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """Returns a mesh of the axes data, fsdp and tensor over all devices.

  Args:
    fsdp: devices that parameters are split over; rows are split over it too.
    tensor: devices that a matrix is split over.
    devices: jax.Devices to lay out; default: every device of every process.

  Raises:
    ConfigError: the product is not the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  shape = (data, fsdp, tensor)
  if math.prod(shape) != len(devices):
    raise errors.ConfigError(
      f"mesh.data x mesh.fsdp x mesh.tensor must be {len(devices)}, the number "
      f"of devices, got {data} x {fsdp} x {tensor} = {math.prod(shape)}"
    )
  return jax.make_mesh(
    shape,
    AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
    devices=devices,
  )


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Returns the sharding of a batch: rows over data and fsdp together."""
  return jax.sharding.NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def shardings(tree: types.Tree, mesh: Mesh, rules: Rules = RULES) -> types.Tree:
  """Returns a sharding for each leaf of a tree; scalars are replicated.

  Args:
    tree: arrays or ShapeDtypeStructs: parameters, a TrainState, a part of it.
    rules: (pattern, axes of the leading dimensions), the first match wins.

  Raises:
    ConfigError: a leaf that no rule names, or a dimension that the axes do not
      divide.
  """

  def one(path, leaf):
    name = path_name(path)
    matching = (axes for pattern, axes in rules if re.search(pattern, name))
    spec = next(matching, None) if leaf.shape else PartitionSpec()
    if spec is None:
      raise errors.ConfigError(
        f"no sharding rule names {name} of shape {leaf.shape}"
      )
    _check_divides(name, leaf.shape, spec, mesh)
    return jax.sharding.NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(one, tree)


def state_shardings(
  state: types.TrainState, mesh: Mesh, placement: Rules = ()
) -> types.TrainState:
  """Returns a sharding for each leaf of a state, a method's own included.

  Args:
    placement: rules of the method, for paths in `extra`. What they do not name
      lies as the parameter of its name does, or else whole on every device.

  Raises:
    ConfigError: as `shardings`.
  """
  everywhere = (r"", PartitionSpec())
  return dataclasses.replace(
    shardings(dataclasses.replace(state, extra=None), mesh),
    extra=shardings(state.extra, mesh, (*placement, *RULES, everywhere)),
  )


def path_name(path: tuple[Any, ...]) -> str:
  """Returns a leaf's path as the rules see it: `layers/q/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _check_divides(
  name: str, shape: Sequence[int], spec: PartitionSpec, mesh: Mesh
) -> None:
  if len(spec) > len(shape):
    raise errors.ConfigError(
      f"{name} of shape {shape} has fewer dimensions than its rule {spec}"
    )
  for dimension, axes in enumerate(spec):
    parts = math.prod(mesh.shape[axis] for axis in _axes(axes))
    if shape[dimension] % parts:
      raise errors.ConfigError(
        f"{name} of shape {shape} cannot be split: dimension {dimension} must "
        f"be a multiple of mesh.{' x mesh.'.join(_axes(axes))} = {parts}, got "
        f"{shape[dimension]}"
      )


def _axes(axes: str | tuple[str, ...] | None) -> Iterator[str]:
  if axes is None:
    return iter(())
  return iter((axes,) if isinstance(axes, str) else axes)


def place_batch(batch: types.Tree, mesh: jax.sharding.Mesh) -> types.Tree:
  """Returns batches on the devices: what is computed split, the rest whole.

  The rows of each micro-batch are split over the data and fsdp axes. Rows of
  sequences have no width and are cheap: every device has them all.

  Args:
    batch: TokenBatches that are packed, on the host, the same in each process.
  """
  places = jax.tree.map(lambda x: batch_place(x.ndim, mesh), batch)
  return processes.put(batch, places)


def batch_place(dimensions: int, mesh: Mesh) -> jax.sharding.NamedSharding:
  """Returns where an array of a batch lies: packed rows have three dimensions.

  Args:
    mesh: the mesh of the run, or one without devices.
  """
  spec = (None, ("data", "fsdp")) if dimensions == 3 else ()
  return jax.sharding.NamedSharding(mesh, PartitionSpec(*spec))
