"""What the compiler says of an update: its memory, and what devices send.

Nothing runs and no weight exists: shapes are lowered and compiled ahead of
time, on CPUs that stand for the devices if need be.
"""

import collections
import re
from typing import Any, NamedTuple, cast

import jax

from bilevel_jax import config
from bilevel_jax.models import presets
from bilevel_jax.training import (
  frozen_base,
  largest_batch,
  learner,
  sharding,
  sources,
)

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
# A CPU's compiler would start all at once what has no order, copy what it
# overwrites, and forget barriers before it puts things in order: as
# accelerators' do not.
_AS_ACCELERATORS = {
  "xla_cpu_enable_concurrency_optimized_scheduler": False,
  "xla_cpu_copy_insertion_use_region_analysis": True,
  "xla_disable_hlo_passes": "cse_barrier_expander",
}


class Compiled(NamedTuple):
  """An update's program on one device."""

  argument_bytes: int
  temporary_bytes: int  # and outputs that take no argument's place
  collectives: dict[str, int]  # in the program's text; those of a loop once

  @property
  def total_bytes(self) -> int:
    """Bytes of a device that the update takes, the reference apart."""
    return self.argument_bytes + self.temporary_bytes


def compile_update(
  settings: config.Config,
  architecture: presets.Architecture,
  mesh: jax.sharding.Mesh,
) -> Compiled:
  """Returns what the compiler says of the largest update of a run.

  Raises:
    ConfigError: a mesh that does not divide the parameters.
  """
  policy = sources.build_policy(
    settings, architecture, sharding.batch_sharding(mesh)
  )
  built = learner.build(settings, policy, mesh)
  state = learner.abstract_state(built.method, policy)
  state = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    state,
    sharding.state_shardings(state, mesh, built.method.placement),
  )
  batch = largest_batch.abstract_batch(settings, built.method, mesh)
  frozen = frozen_base.abstract(policy, mesh)
  lowered = cast(Any, built.programs.update).lower(state, batch, frozen)
  try:
    program = lowered.compile(
      _AS_ACCELERATORS if mesh.devices.flat[0].platform == "cpu" else None
    )
  except jax.errors.JaxRuntimeError as error:
    if not any(option in str(error) for option in _AS_ACCELERATORS):
      raise
    program = lowered.compile()  # a compiler that has no such options
  memory = program.memory_analysis()
  found = re.findall(
    rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", program.as_text()
  )
  return Compiled(
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes,
    dict(collections.Counter(found)),
  )
