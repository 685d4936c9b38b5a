"""The adapter alone, in the format of Hugging Face's PEFT."""

import pathlib
from typing import Any, NamedTuple

import chex
import jax

from bilevel_jax import config, types
from bilevel_jax.models import (
  huggingface_config,
  huggingface_export,
  huggingface_layout,
  presets,
  safetensors_files,
)

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
# Fields that change what an adapter computes, and the only value we implement.
_ONLY = {
  "peft_type": ("LORA",),
  "bias": ("none", None),
  "use_rslora": (False, None),
  "use_dora": (False, None),
  "fan_in_fan_out": (False, None),
  "lora_bias": (False, None),
  "rank_pattern": ({}, None),
  "alpha_pattern": ({}, None),
  "modules_to_save": (None, []),
  "layer_replication": (None, []),
}


class LoadedAdapter(NamedTuple):
  """An adapter as a PEFT directory describes it."""

  adapter: types.Tree
  rank: int
  alpha: float
  base_model_name: str | None


def export_adapter(
  directory: str | pathlib.Path,
  architecture: presets.Architecture,
  adapter: types.Tree,
  *,
  rank: int,
  alpha: float,
  targets: tuple[str, ...],
  base_model_name: str | None,
) -> pathlib.Path:
  """Returns `directory`, now holding the adapter as PEFT reads it.

  The adapter belongs to the base that it was trained with: where the base has
  moved too, `base_model_name` must be an export of that base without it.
  Every process of a run must call this; the first one writes.

  Args:
    directory: where to write.
    architecture: of the base.
    adapter: {target: {"A": [L, in, r], "B": [L, r, out]}}.
    rank: r.
    alpha: A @ B is scaled by alpha / r.
    targets: the adapter's keys.
    base_model_name: directory or hub id of the base.

  Raises:
    ConfigError: the directory cannot be written.
  """
  directory = pathlib.Path(directory)
  chex.assert_equal(sorted(adapter), sorted(targets))
  places = _places(architecture, targets, rank)
  chex.assert_trees_all_equal_comparator(
    lambda x, place: x.shape == (len(place.names), *reversed(place.shape)),
    lambda x, place: f"{x.shape} does not fit {place}",
    adapter,
    places,
  )
  writes = jax.process_index() == 0
  stage = huggingface_export.make_stage(directory) if writes else None
  pairs = list(
    zip(jax.tree.leaves(places), jax.tree.leaves(adapter), strict=True)
  )
  safetensors_files.write(
    stage and stage / _WEIGHTS,
    {name: place.shape for place, _ in pairs for name in place.names},
    safetensors_files.DTYPES["F32"],
    (
      layer.T
      for _, stacked in pairs
      for layer in huggingface_export.gather(stacked)
    ),
  )
  if stage is None:
    return directory
  huggingface_export.write_json(
    stage / _CONFIG,
    {
      "peft_type": "LORA",
      "task_type": "CAUSAL_LM",
      "base_model_name_or_path": base_model_name,
      "r": rank,
      "lora_alpha": alpha,
      "lora_dropout": 0.0,
      "target_modules": [
        huggingface_layout.PROJECTIONS[t].split(".")[-1] for t in targets
      ],
      "bias": "none",
      "fan_in_fan_out": False,
      "use_rslora": False,
      "use_dora": False,
      "modules_to_save": None,
      "inference_mode": True,
    },
  )
  huggingface_export.publish(stage, directory, _CONFIG)
  return directory


def load_adapter(
  directory: str | pathlib.Path,
  architecture: presets.Architecture,
  shardings: types.Tree | None = None,
) -> LoadedAdapter:
  """Returns the adapter of a PEFT directory, with what its scale follows from.

  Args:
    directory: with adapter_config.json and adapter_model.safetensors.
    architecture: of the base.
    shardings: the tree of the adapter with a Sharding for each array; None
      puts everything on the first device.

  Raises:
    ConfigError: a file is missing or broken, the tensors do not fit the
      architecture, or the adapter is of a kind that is not implemented.
  """
  directory = pathlib.Path(directory)
  for name in (_CONFIG, _WEIGHTS):
    if not (directory / name).exists():
      raise config.ConfigError(f"{directory} has no {name}")
  fields = huggingface_config.read_object(directory / _CONFIG)
  for name, allowed in _ONLY.items():
    if fields.get(name) not in allowed:
      raise config.ConfigError(
        f"{directory / _CONFIG}: {name} {fields.get(name)!r} is not supported, "
        f"only {allowed[0]!r}"
      )
  rank = int(_positive(fields, "r", directory))
  alpha = float(_positive(fields, "lora_alpha", directory))
  tensors = safetensors_files.read(directory / _WEIGHTS)
  # target_modules may be a pattern, so the tensors say which targets there are.
  targets = tuple(
    target
    for target, module in huggingface_layout.PROJECTIONS.items()
    if any(f".{module}.lora_" in name for name in tensors)
  )
  places = _places(architecture, targets, rank)
  expected = {
    name: place.shape
    for place in jax.tree.leaves(places)
    for name in place.names
  }
  safetensors_files.check(tensors, expected, directory)
  if shardings is None:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: device, places)
  adapter = jax.tree.map(
    lambda place, sharding: safetensors_files.stack(
      [tensors[name].T for name in place.names], sharding
    ),
    places,
    shardings,
  )
  name = fields.get("base_model_name_or_path")
  return LoadedAdapter(adapter, rank, alpha, name)


def _places(
  architecture: presets.Architecture, targets: tuple[str, ...], rank: int
) -> types.Tree:
  tree = {}
  for target in targets:
    inputs, outputs = architecture.projections[target]
    module = huggingface_layout.PROJECTIONS[target]
    tree[target] = {
      factor: huggingface_layout.Weight(
        names=tuple(
          f"base_model.model.model.layers.{i}.{module}.lora_{factor}.weight"
          for i in range(architecture.layers)
        ),
        shape=shape,
        transposed=True,
      )
      for factor, shape in (("A", (rank, inputs)), ("B", (outputs, rank)))
    }
  return tree


def _positive(fields: dict[str, Any], name: str, where: pathlib.Path) -> float:
  value = fields.get(name)
  if isinstance(value, (int, float)) and value > 0:
    return value
  raise config.ConfigError(
    f"{where / _CONFIG}: {name} must be a positive number, got {value!r}"
  )
