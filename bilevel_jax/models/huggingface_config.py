"""config.json of a Hugging Face directory <-> `Architecture`."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from bilevel_jax import config
from bilevel_jax.models import presets

_CLASSES = {
  "llama": "LlamaForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
}
# What transformers assumes where a file leaves the field out.
_DEFAULT_POSITIONS = {"llama": 2048, "qwen2": 32768, "qwen3": 32768}
# Fields that change the computation, and the only values we implement.
_ONLY = {
  "hidden_act": ("silu", None),
  "mlp_bias": (False, None),
  "use_sliding_window": (False, None),
  "partial_rotary_factor": (1, None),
  "rope_interleaved": (False, None),
  "quantization_config": (None,),
}
_LLAMA3_FIELDS = (
  "factor",
  "low_freq_factor",
  "high_freq_factor",
  "original_max_position_embeddings",
)


def read_architecture(directory: str | pathlib.Path) -> presets.Architecture:
  """Returns the architecture that a directory's config.json describes.

  Args:
    directory: a Hugging Face model directory.

  Raises:
    ConfigError: no readable config.json, an unknown family, or a field whose
      value changes the computation in a way that is not implemented.
  """
  fields = read_fields(directory)
  where = f"{pathlib.Path(directory) / 'config.json'}: "
  family = fields.get("model_type")
  if family not in _CLASSES:
    raise config.ConfigError(
      f"{where}model_type must be one of {', '.join(_CLASSES)}, got {family!r}"
    )
  _refuse_unsupported(fields, family, where)
  theta, scaling = _rope(fields, where)

  def count(name: str, default: int | None = None) -> int:
    value = fields.get(name)
    value = default if value is None else value
    if type(value) is not int or value < 1:
      raise config.ConfigError(
        f"{where}{name} must be a positive integer, got {value!r}"
      )
    return value

  width, heads = count("hidden_size"), count("num_attention_heads")
  kv_heads = count("num_key_value_heads", heads)
  head_dim = count("head_dim", 128 if family == "qwen3" else width // heads)
  if heads % kv_heads:
    raise config.ConfigError(
      f"{where}num_key_value_heads must divide num_attention_heads {heads}, "
      f"got {kv_heads}"
    )
  if head_dim % 2:
    raise config.ConfigError(f"{where}head_dim must be even, got {head_dim}")
  return presets.Architecture(
    family=family,
    vocab_size=count("vocab_size"),
    width=width,
    layers=count("num_hidden_layers"),
    heads=heads,
    kv_heads=kv_heads,
    head_dim=head_dim,
    mlp_width=count("intermediate_size"),
    max_positions=count("max_position_embeddings", _DEFAULT_POSITIONS[family]),
    rope_theta=theta,
    rope_scaling=scaling,
    norm_eps=_number(fields, "rms_norm_eps", where, 1e-6),
    tied_embeddings=bool(fields.get("tie_word_embeddings", False)),
    attention_bias=family == "qwen2",
    qk_norm=family == "qwen3",
  )


def read_fields(directory: str | pathlib.Path) -> dict[str, Any]:
  """Returns config.json as a dict.

  Args:
    directory: a Hugging Face model directory.

  Raises:
    ConfigError: the directory or its config.json is missing or not JSON.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise config.ConfigError(f"{directory} is not a directory")
  path = directory / "config.json"
  if not path.exists():
    raise config.ConfigError(f"{directory} has no config.json")
  return read_object(path)


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """Returns the JSON object in a file.

  Args:
    path: a file.

  Raises:
    ConfigError: the file is not a JSON object.
  """
  try:
    fields = json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise config.ConfigError(f"{path} is not JSON: {error}") from None
  if not isinstance(fields, dict):
    raise config.ConfigError(f"{path} must be a JSON object, got {fields!r}")
  return fields


def config_fields(
  architecture: presets.Architecture,
  dtype: str,
  token_ids: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns config.json for an architecture, as transformers 4 and 5 read it.

  Args:
    architecture: what to describe.
    dtype: float32 or bfloat16, of the weights beside it.
    token_ids: bos_token_id, eos_token_id, pad_token_id, as far as known.

  Raises:
    ConfigError: the family's transformers class has no such switches.
  """
  family = architecture.family
  for name, holds in (
    ("attention_bias", family == "qwen2"),
    ("qk_norm", family == "qwen3"),
  ):
    if family not in _CLASSES or getattr(architecture, name) != holds:
      raise config.ConfigError(
        f"a model of family {family} with {name} "
        f"{getattr(architecture, name)} has no counterpart in transformers"
      )
  scaling = architecture.rope_scaling
  return {
    "architectures": [_CLASSES[family]],
    "model_type": family,
    "vocab_size": architecture.vocab_size,
    "hidden_size": architecture.width,
    "intermediate_size": architecture.mlp_width,
    "num_hidden_layers": architecture.layers,
    "num_attention_heads": architecture.heads,
    "num_key_value_heads": architecture.kv_heads,
    "head_dim": architecture.head_dim,
    "hidden_act": "silu",
    "max_position_embeddings": architecture.max_positions,
    "rms_norm_eps": architecture.norm_eps,
    "rope_theta": architecture.rope_theta,
    "rope_scaling": None
    if scaling is None
    else {
      "rope_type": "llama3",
      "factor": scaling.factor,
      "low_freq_factor": scaling.low_freq_factor,
      "high_freq_factor": scaling.high_freq_factor,
      "original_max_position_embeddings": scaling.original_max_positions,
    },
    "tie_word_embeddings": architecture.tied_embeddings,
    # Null, not absent: Llama's class would fill in ids 1 and 2.
    **{
      name: token_ids.get(name)
      for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    },
    "torch_dtype": dtype,
    "use_cache": True,
  }


def _refuse_unsupported(
  fields: Mapping[str, Any], family: str, where: str
) -> None:
  only = dict(_ONLY)
  if family != "qwen2":  # whose q, k, v have biases whatever the file says
    only["attention_bias"] = (False, None)
  for name, allowed in only.items():
    if fields.get(name) not in allowed:
      raise config.ConfigError(
        f"{where}{name} {fields[name]!r} is not supported, only {allowed[0]!r}"
      )
  kinds = set(fields.get("layer_types") or ()) - {"full_attention"}
  if kinds:
    raise config.ConfigError(
      f"{where}layer_types {sorted(kinds)} is not supported, only "
      "'full_attention'"
    )


def _rope(
  fields: Mapping[str, Any], where: str
) -> tuple[float, presets.Llama3Scaling | None]:
  # transformers 5 writes rope_parameters, with theta inside; older versions
  # rope_scaling (whose rope_type was called type once), with theta beside it.
  name = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
  rope = fields.get(name) or {}
  if not isinstance(rope, dict):
    raise config.ConfigError(f"{where}{name} must be an object, got {rope!r}")
  kind = rope.get("rope_type", rope.get("type", None if rope else "default"))
  if set(rope) == {"rope_theta"}:
    kind = "default"
  if kind not in ("default", "llama3"):
    raise config.ConfigError(
      f"{where}{name} of type {kind!r} is not supported, only 'default' and "
      "'llama3'"
    )
  if rope.get("partial_rotary_factor") not in (1, None):
    raise config.ConfigError(
      f"{where}partial_rotary_factor {rope['partial_rotary_factor']!r} is not "
      "supported, only 1"
    )
  theta = _number({**fields, **rope}, "rope_theta", where, 10000.0)
  if kind == "default":
    return theta, None
  factor, low, high, original = (
    _number(rope, field, f"{where}{name}.") for field in _LLAMA3_FIELDS
  )
  return theta, presets.Llama3Scaling(
    factor=factor,
    low_freq_factor=low,
    high_freq_factor=high,
    original_max_positions=int(original),
  )


def _number(
  fields: Mapping[str, Any],
  name: str,
  where: str,
  default: float | None = None,
) -> float:
  value = fields.get(name)
  value = default if value is None else value
  if isinstance(value, (int, float)) and value > 0:
    return float(value)
  raise config.ConfigError(
    f"{where}{name} must be a positive number, got {value!r}"
  )
