"""What a run would hold in each device's memory, before anything is run.

  python tools/plan_memory.py --config configs/bridge_qwen25_3b_limr.py \\
    --devices 8 --memory 80GB [--compile] [--config.model.remat=none ...]

Needs no weights where model.weights is a known hub id. --compile also asks
the compiler about the update, in float32, with CPUs in the devices' place:
CPUs compute bfloat16 in float32 copies, which would say nothing.
"""

import dataclasses
import math
import os
import sys
import time
from collections.abc import Sequence

import jax
from absl import flags

from bilevel_jax import config, errors, fields, main
from bilevel_jax.models import presets
from bilevel_jax.training import (
  compiled_update,
  memory_plan,
  meshes,
  sharding,
  sources,
)

_DEVICES = flags.DEFINE_integer("devices", 1, "devices of the run")
_MEMORY = flags.DEFINE_string(
  "memory", None, "of a device, as in 80GB or 141GiB; default: not bounded"
)
_COMPILE = flags.DEFINE_boolean("compile", False, "ask the compiler, too")
_MOST_DEVICES = 2**16


def report(arguments: Sequence[str]) -> None:
  """Prints the plan, and what the compiler says if it is asked."""
  settings = main.read_settings(arguments)
  if settings.model.attention in ("auto", "cudnn"):
    settings = _replace(settings, attention="chunked")
  devices, memory = _DEVICES.value, _bytes(_MEMORY.value)
  if not 1 <= devices <= _MOST_DEVICES:
    raise errors.ConfigError(
      f"--devices must be from 1 to {_MOST_DEVICES}, got {devices}"
    )
  if memory == 0:
    raise errors.ConfigError(f"--memory must be above 0, got {_MEMORY.value}")
  if _COMPILE.value:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
  architecture = presets.of_hub_id(str(settings.model.weights))
  if architecture is None:
    architecture = sources.open_model(settings).architecture
  sources.check_positions(settings, architecture)
  used = jax.devices() if _COMPILE.value else None
  chosen = meshes.choose(settings, architecture, devices, memory, used)
  print(f"mesh: {chosen.sizes}, {chosen.reason}")
  print(memory_plan.table(chosen.plan))
  if memory is not None:
    print(
      f"  of {memory / 2**30:.2f} GiB: "
      f"{100 * chosen.plan.peak / memory:.0f}% at most"
    )
  if _COMPILE.value:
    _compare(_replace(settings, compute_dtype="float32"), architecture, chosen)


def _compare(
  settings: config.Config,
  architecture: presets.Architecture,
  chosen: meshes.Choice,
) -> None:
  used = jax.devices()[: math.prod(chosen.sizes)]
  mesh = sharding.make_mesh(*chosen.sizes, devices=used)
  plan = memory_plan.plan(settings, architecture, mesh)
  started = time.perf_counter()
  said = compiled_update.compile_update(settings, architecture, mesh)
  planned = plan.update_program
  print(
    f"the update in float32: planned {planned / 2**30:.2f} GiB, compiled "
    f"{said.total_bytes / 2**30:.2f} (state and batch "
    f"{said.argument_bytes / 2**30:.2f}), planned / compiled "
    f"{planned / said.total_bytes:.3f}; {time.perf_counter() - started:.0f} s"
  )
  print(f"collectives: {said.collectives or 'none'}")


def _replace(settings: config.Config, **changes: str) -> config.Config:
  model = dataclasses.replace(settings.model, **changes)
  return dataclasses.replace(settings, model=model)


def _bytes(text: str | None) -> int | None:
  try:
    return None if text is None else fields.byte_count(text)
  except ValueError as error:
    raise errors.ConfigError(f"--memory {error}") from None


if __name__ == "__main__":
  # A config file may import its neighbours, as under `python -m`.
  sys.path.insert(0, os.getcwd())
  main.run(report)
