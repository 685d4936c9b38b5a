"""The adapter alone, in the format of Hugging Face's PEFT."""

import pathlib
from typing import NamedTuple

import chex
import jax

from bilevel_jax import errors, types
from bilevel_jax.models import lora, presets
from bilevel_jax.weights import (
  huggingface_config,
  huggingface_export,
  huggingface_names,
  safetensors_files,
)

_WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
FOLDER = "adapter"
"""Where it is in an export."""
_BASE = "base_model.json"
# Fields that change what an adapter computes, and the only value we implement.
_ONLY = {
  "peft_type": ("LORA",),
  "bias": ("none", None),
  "use_rslora": (False, None),
  "use_dora": (False, None),
  "use_qalora": (False, None),
  # The others, such as pissa, also take a part out of the base.
  "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
  "alora_invocation_tokens": (None, []),
  "fan_in_fan_out": (False, None),
  "lora_bias": (False, None),
  "rank_pattern": ({}, None),
  "alpha_pattern": ({}, None),
  "modules_to_save": (None, []),
  "layer_replication": (None, []),
}

# Those that we read, that were of use in training, or that the tensors show.
_OTHERS = """
  auto_mapping base_model_name_or_path ensure_weight_tying eva_config
  exclude_modules inference_mode layers_pattern layers_to_transform lora_alpha
  lora_dropout megatron_config megatron_core peft_version qalora_group_size r
  revision runtime_config target_modules target_parameters task_type
  trainable_token_indices
""".split()  # noqa: SIM905 -- a list would take 21 lines


class LoadedAdapter(NamedTuple):
  """An adapter as a PEFT directory describes it."""

  adapter: types.Tree
  spec: lora.Spec
  base_model_name: str | None


class Base(NamedTuple):
  """Which base an adapter fits."""

  name: str | None  # directory or hub id
  fingerprint: str | None = None  # `Opened.fingerprint`; None: not known
  revision: str | None = None  # of a hub id


def export_adapter(
  directory: str | pathlib.Path,
  architecture: presets.Architecture,
  adapter: types.Tree,
  spec: lora.Spec,
  *,
  base: Base,
) -> pathlib.Path:
  """Returns `directory`, now holding the adapter as PEFT reads it.

  The adapter belongs to the base that it was trained with: where the base has
  moved too, `base` must be an export of that base without it. What PEFT does
  not read, the base's fingerprint, is in a file of its own, base_model.json.
  Every process of a run must call this; the first one writes.

  Args:
    adapter: {target: {"A": [L, in, r], "B": [L, r, out]}}.
    base: of which `name` is a directory or hub id.

  Raises:
    ConfigError: the directory cannot be written.
  """
  directory = pathlib.Path(directory)
  places = _places(architecture, spec.targets, spec.rank)
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
  safetensors_files.write_file(
    stage and stage / _WEIGHTS,
    {name: place.shape for place, _ in pairs for name in place.names},
    safetensors_files.DTYPES["F32"],
    (
      layer.T
      for _, stacked in pairs
      for layer in huggingface_export.gather_layers(stacked)
    ),
  )
  if stage is None:
    return directory
  huggingface_export.write_json(
    stage / CONFIG,
    {
      "peft_type": "LORA",
      "task_type": "CAUSAL_LM",
      "base_model_name_or_path": base.name,
      "r": spec.rank,
      "lora_alpha": spec.alpha,
      "lora_dropout": 0.0,
      "target_modules": [
        huggingface_names.PROJECTIONS[t].split(".")[-1] for t in spec.targets
      ],
      "bias": "none",
      "fan_in_fan_out": False,
      "use_rslora": False,
      "use_dora": False,
      "modules_to_save": None,
      "inference_mode": True,
    },
  )
  huggingface_export.write_json(stage / _BASE, base._asdict())
  huggingface_export.publish(stage, directory, CONFIG)
  return directory


def find(directory: pathlib.Path) -> pathlib.Path | None:
  """Returns where an adapter is: there, or in an export, or in a run's."""
  for place in ("", FOLDER, f"export/{FOLDER}"):
    if (directory / place / CONFIG).is_file():
      return directory / place
  return None


def read_base(directory: pathlib.Path) -> Base:
  """Returns the base that a PEFT directory says it fits.

  Raises:
    ConfigError: a file that is not a JSON object of texts.
  """
  config = huggingface_config.read_object(directory / CONFIG)
  name = config.get("base_model_name_or_path")
  fields = {}
  if (directory / _BASE).exists():
    fields = huggingface_config.read_object(directory / _BASE)
  found = Base(name, fields.get("fingerprint"), fields.get("revision"))
  for key, value in found._asdict().items():
    if value is not None and not isinstance(value, str):
      raise errors.ConfigError(
        f"{directory}: the {key} of an adapter's base must be a text, got "
        f"{value!r}"
      )
  # Where the base was named anew by hand, the hash of the old one says nothing.
  return found if fields.get("name") in (None, name) else Base(name)


def load_adapter(
  directory: str | pathlib.Path, architecture: presets.Architecture
) -> LoadedAdapter:
  """Returns the adapter of a PEFT directory, with what its scale follows from.

  Its arrays are on the first device.

  Raises:
    ConfigError: a file is missing or broken, the tensors do not fit the
      architecture, or the adapter is of a kind that is not implemented.
  """
  directory = pathlib.Path(directory)
  fields = huggingface_config.read_object(directory / CONFIG)
  where = f"{directory / CONFIG}: "
  named = {"peft_type": None} | fields
  huggingface_config.refuse_unsupported(named, _ONLY, where)
  used = {k: v for k, v in fields.items() if v not in (False, {}, [])}
  huggingface_config.refuse_unknown(used, {*_ONLY, *_OTHERS}, where)
  rank = huggingface_config.positive_count(fields, "r", where)
  alpha = huggingface_config.positive_number(fields, "lora_alpha", where)
  if not (directory / _WEIGHTS).exists():
    raise errors.ConfigError(f"{directory} has no {_WEIGHTS}")
  tensors = safetensors_files.open_file(directory / _WEIGHTS)
  # target_modules may be a pattern, so the tensors say which targets there are.
  targets = tuple(
    target
    for target, module in huggingface_names.PROJECTIONS.items()
    if any(f".{module}.lora_" in name for name in tensors)
  )
  places = _places(architecture, targets, rank)
  huggingface_names.check_shapes(
    {name: tensor.shape for name, tensor in tensors.items()},
    huggingface_names.shapes(places),
    directory,
  )
  return LoadedAdapter(
    safetensors_files.read_arrays(places, tensors, None),
    lora.Spec(rank=rank, alpha=alpha, targets=targets),
    fields.get("base_model_name_or_path"),
  )


def _places(
  architecture: presets.Architecture, targets: tuple[str, ...], rank: int
) -> types.Tree:
  tree = {}
  for target in targets:
    inputs, outputs = architecture.projections[target]
    module = huggingface_names.PROJECTIONS[target]
    tree[target] = {
      factor: huggingface_names.Weight(
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
