"""How the devices of a run are laid out, and why."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bilevel_jax import config, errors, processes
from bilevel_jax.models import presets
from bilevel_jax.training import compiled_update, memory_plan, sharding
from bilevel_jax.types import Tree

# A model whose whole run takes less than this share of a device, or so many
# bytes where devices do not say what they have, is copied to each of them.
_SMALL_SHARE, _SMALL_BYTES = 0.5, 2**30
# Times the compiler's figure, the highest that a plan has been seen to be.
_MOST_OVER = 1.5
# Of a device, what weights may take while they are read to be sampled from.
_ROOM = 0.9


class Sizes(NamedTuple):
  """Devices along each axis of a mesh."""

  data: int
  fsdp: int
  tensor: int

  def abstract(self) -> jax.sharding.AbstractMesh:
    """Returns a mesh of these sizes without devices: for shapes alone."""
    axis_types = (jax.sharding.AxisType.Auto,) * len(self)
    return jax.sharding.AbstractMesh(
      tuple(self), sharding.AXES, axis_types=axis_types
    )

  def __str__(self) -> str:
    return " x ".join(
      f"{axis} {size}" for axis, size in zip(sharding.AXES, self, strict=True)
    )


class Choice(NamedTuple):
  """A mesh's sizes, what they make a device hold, and why it was chosen."""

  sizes: Sizes
  plan: memory_plan.Plan
  reason: str


def choose(
  settings: config.Config,
  architecture: presets.Architecture,
  devices: int,
  device_bytes: int | None,
  used: Sequence[Any] | None = None,
) -> Choice:
  """Returns the mesh that the settings ask for, or the best that fits.

  Sizes that the settings give are kept. With none given, in this order: a copy
  of everything on each device, where that is small; parameters split over as
  many devices as divide them, which moves least; matrices split as well, only
  where the rest does not fit or cannot be divided.

  Args:
    device_bytes: memory of each; None: not known, and all fits.
    used: the devices themselves, whose compiler is asked of the update before
      a run is refused, which takes seconds; None: the plan has the last word.

  Raises:
    ConfigError: sizes that do not divide what they split, or a run that does
      not fit, with the table of what it would take.
  """
  plan_of = lambda sizes: memory_plan.plan(
    settings, architecture, sizes.abstract(), device_bytes
  )
  fitting = functools.partial(
    _fitting,
    device_bytes=device_bytes,
    ask=functools.partial(_compiled, settings, architecture, used),
  )
  asked = settings.mesh
  if (asked.data, asked.fsdp, asked.tensor) != (None, None, None):
    sizes = _as_asked(asked, devices)
    plan = plan_of(sizes)
    return Choice(sizes, fitting(plan, sizes), "as mesh.* says")
  refused: errors.ConfigError | None = None
  tightest: tuple[Sizes, memory_plan.Plan] | None = None
  small = _SMALL_BYTES if device_bytes is None else _SMALL_SHARE * device_bytes
  for sizes in _all_sizes(devices):
    if architecture.kv_heads % sizes.tensor:
      continue
    try:
      plan = plan_of(sizes)
    except errors.ConfigError as error:
      refused = error
      continue
    if devices == 1:
      return Choice(sizes, fitting(plan, sizes), "there is one device")
    if sizes.fsdp == sizes.tensor == 1:
      if plan.peak <= small:
        return Choice(sizes, plan, "a copy on each device is small")
      continue
    if tightest is None or plan.peak < tightest[1].peak:
      tightest = sizes, plan
    if device_bytes is None or plan.peak <= device_bytes:
      return Choice(sizes, plan, _split(sizes))
  if tightest is not None:
    sizes, plan = tightest
    return Choice(sizes, fitting(plan, sizes), _split(sizes))
  if refused is None:
    refused = errors.ConfigError(
      f"{devices} devices cannot be laid out for this model: set mesh.data"
    )
  raise refused


def make(
  settings: config.Config, architecture: presets.Architecture
) -> tuple[jax.sharding.Mesh, str]:
  """Returns the mesh of a run, and a line that says what it is and why.

  Raises:
    ConfigError: as `choose`.
  """
  devices = jax.devices()
  limit = settings.mesh.device_bytes or _reported_bytes(devices)
  chosen = choose(settings, architecture, len(devices), limit, devices)
  used = devices[: math.prod(chosen.sizes)]
  peak = f"about {chosen.plan.peak / 2**30:.2f} GiB"
  if limit is not None:
    peak += f" of {limit / 2**30:.1f}"
  line = f"mesh: {chosen.sizes}, {chosen.reason}; {peak} a device"
  return sharding.make_mesh(*chosen.sizes, devices=used), line


def for_sampling(
  architecture: presets.Architecture, base: Tree, *, devices: Sequence[Any]
) -> tuple[jax.sharding.NamedSharding, Tree]:
  """Returns where rows are and where each array is, to sample and no more.

  Each device has a copy of the weights and a part of the rows. Where a device
  cannot hold the weights as they are read, float32 and a copy in the
  compute dtype, matrices are split over as few devices as it takes.

  Args:
    base: its arrays, or their shapes.

  Raises:
    ConfigError: no device can hold its part, however it is split.
  """
  limit = _reported_bytes(devices) or math.inf
  needed = 6 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(base))
  splits = [
    n
    for n in range(1, len(devices) + 1)
    if len(devices) % n == 0 and architecture.kv_heads % n == 0
  ]
  fitting = [n for n in splits if needed / n <= _ROOM * limit]
  if not fitting:
    raise errors.ConfigError(
      f"the weights take {needed / splits[-1] / 2**30:.1f} GiB on each of "
      f"{len(devices)} devices while they are read, at the finest split that "
      f"this model allows ({splits[-1]}), and may take "
      f"{_ROOM * limit / 2**30:.1f}"
    )
  tensor = fitting[0]
  mesh = sharding.make_mesh(len(devices) // tensor, 1, tensor, devices=devices)
  return sharding.batch_sharding(mesh), sharding.shardings(base, mesh)


def _as_asked(asked: config.Mesh, devices: int) -> Sizes:
  data, tensor = asked.data or 1, asked.tensor or 1
  fsdp = asked.fsdp or max(1, devices // (data * tensor))
  sizes = Sizes(data, fsdp, tensor)
  wanted = math.prod(sizes)
  if wanted > devices or (asked.fsdp is None and wanted != devices):
    raise errors.ConfigError(
      f"mesh.data x mesh.fsdp x mesh.tensor must be {devices}, the number of "
      f"devices, got {' x '.join(map(str, sizes))} = {wanted}"
    )
  return sizes


def _all_sizes(devices: int) -> Iterator[Sizes]:
  """All of them, the preferred first."""
  divisors = lambda n: [k for k in range(1, n + 1) if n % k == 0]
  yield Sizes(devices, 1, 1)
  for tensor in divisors(devices):
    for fsdp in reversed(divisors(devices // tensor)):
      if fsdp * tensor > 1:
        yield Sizes(devices // (tensor * fsdp), fsdp, tensor)


def _split(sizes: Sizes) -> str:
  if sizes.tensor > 1:
    return "matrices are split too, since parameters alone are not enough"
  if sizes.data > 1:
    return f"parameters are split over the {sizes.fsdp} that divide them"
  return "parameters are split over all devices"


def _fitting(
  plan: memory_plan.Plan,
  sizes: Sizes,
  *,
  device_bytes: int | None,
  ask: Callable[[Sizes], int | None],
) -> memory_plan.Plan:
  """Returns a plan that fits, with the compiler's figure if that decided it."""
  if device_bytes is None or plan.peak <= device_bytes:
    return plan
  if (
    plan.moments()["generation"] <= device_bytes
    and plan.peak <= _MOST_OVER * device_bytes
  ):
    plan = plan._replace(compiled=ask(sizes))
    if plan.peak <= device_bytes:
      return plan
  raise errors.ConfigError(
    f"the run needs about {plan.peak / 2**30:.1f} GiB on each device, which "
    f"has {device_bytes / 2**30:.1f}, with the mesh {sizes}:\n"
    f"{memory_plan.table(plan)}\n"
    "docs/memory_and_meshes.md says what to change"
  )


def _compiled(
  settings: config.Config,
  architecture: presets.Architecture,
  devices: Sequence[Any] | None,
  sizes: Sizes,
) -> int | None:
  """Bytes of the update's program on each device; None: it cannot be asked."""
  if devices is None:
    return None
  mesh = sharding.make_mesh(*sizes, devices=devices[: math.prod(sizes)])
  try:
    found = compiled_update.compile_update(settings, architecture, mesh)
  except jax.errors.JaxRuntimeError:  # it may need memory of the device
    return None
  return found.total_bytes


def _reported_bytes(devices: Sequence[Any]) -> int | None:
  """Least memory that a device says it has, in any process; None: silence."""
  mine = [d for d in devices if d.process_index == jax.process_index()]
  limits = [(d.memory_stats() or {}).get("bytes_limit", 0) for d in mine]
  mebibytes = min(limits, default=0) // 2**20
  return int(processes.gather(np.int32(mebibytes)).min()) * 2**20 or None
