"""config.json of a Hugging Face directory <-> `Architecture`."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from bilevel_jax import errors
from bilevel_jax.models import presets
from bilevel_jax.weights.families import FAMILIES

# Fields that change the computation, and the only values we implement.
_ROPE_ONLY = {"partial_rotary_factor": (1, None)}
_ONLY = _ROPE_ONLY | {
  "hidden_act": ("silu", None),
  "mlp_bias": (False, None),
  "use_sliding_window": (False, None),
  "rope_interleaved": (False, None),
  "quantization_config": (None,),
}
# Of `presets.Llama3Scaling` -> of config.json.
_LLAMA3_FIELDS = {
  "factor": "factor",
  "low_freq_factor": "low_freq_factor",
  "high_freq_factor": "high_freq_factor",
  "original_max_positions": "original_max_position_embeddings",
}


def read_architecture(directory: str | pathlib.Path) -> presets.Architecture:
  """Returns the architecture that a directory's config.json describes.

  Raises:
    ConfigError: no readable config.json, an unknown family, or a field whose
      value changes the computation in a way that is not implemented.
  """
  fields = read_fields(directory)
  where = f"{pathlib.Path(directory) / 'config.json'}: "
  name = fields.get("model_type")
  if name not in FAMILIES:
    raise errors.ConfigError(
      f"{where}model_type must be one of {', '.join(FAMILIES)}, got {name!r}"
    )
  family = FAMILIES[name]
  only = dict(_ONLY)
  if not family.attention_bias:  # the others have biases whatever a file says
    only["attention_bias"] = (False, None)
  refuse_unsupported(fields, only, where)
  kinds = set(fields.get("layer_types") or ()) - {"full_attention"}
  if kinds:
    raise errors.ConfigError(
      f"{where}layer_types {sorted(kinds)} is not supported, only "
      "'full_attention'"
    )
  theta, scaling = _rope(fields, where)

  def count(name: str, default: int | None = None) -> int:
    value = fields.get(name)
    value = default if value is None else value
    if type(value) is not int or value < 1:
      raise errors.ConfigError(
        f"{where}{name} must be a positive integer, got {value!r}"
      )
    return value

  width, heads = count("hidden_size"), count("num_attention_heads")
  kv_heads = count("num_key_value_heads", heads)
  head_dim = count("head_dim", family.default_head_dim or width // heads)
  if heads % kv_heads:
    raise errors.ConfigError(
      f"{where}num_key_value_heads must divide num_attention_heads {heads}, "
      f"got {kv_heads}"
    )
  if head_dim % 2:
    raise errors.ConfigError(f"{where}head_dim must be even, got {head_dim}")
  return presets.Architecture(
    family=name,
    vocab_size=count("vocab_size"),
    width=width,
    layers=count("num_hidden_layers"),
    heads=heads,
    kv_heads=kv_heads,
    head_dim=head_dim,
    mlp_width=count("intermediate_size"),
    max_positions=count("max_position_embeddings", family.default_positions),
    rope_theta=theta,
    rope_scaling=scaling,
    norm_eps=positive_number(fields, "rms_norm_eps", where, 1e-6),
    tied_embeddings=bool(fields.get("tie_word_embeddings", False)),
    attention_bias=family.attention_bias,
    qk_norm=family.qk_norm,
  )


def read_fields(directory: str | pathlib.Path) -> dict[str, Any]:
  """Returns config.json as a dict.

  Raises:
    ConfigError: the directory or its config.json is missing or not JSON.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise errors.ConfigError(f"{directory} is not a directory")
  return read_object(directory / "config.json")


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """Returns the JSON object in a file.

  Raises:
    ConfigError: there is no such file, or it is not a JSON object.
  """
  if not path.exists():
    raise errors.ConfigError(f"{path.parent} has no {path.name}")
  try:
    fields = json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise errors.ConfigError(f"{path} is not JSON: {error}") from None
  if not isinstance(fields, dict):
    raise errors.ConfigError(f"{path} must be a JSON object, got {fields!r}")
  return fields


def config_fields(
  architecture: presets.Architecture,
  dtype: str,
  token_ids: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns config.json for an architecture, as transformers 4 and 5 read it.

  Args:
    dtype: float32 or bfloat16, of the weights beside it.
    token_ids: bos_token_id, eos_token_id, pad_token_id, as far as known.

  Raises:
    ConfigError: the family's transformers class has no such switches.
  """
  family = FAMILIES.get(architecture.family)
  for name in ("attention_bias", "qk_norm"):
    value = getattr(architecture, name)
    if family is None or value != getattr(family, name):
      raise errors.ConfigError(
        f"a model of family {architecture.family} with {name} {value} has no "
        "counterpart in transformers"
      )
  scaling = architecture.rope_scaling
  return {
    "architectures": [family.transformers_class],
    "model_type": architecture.family,
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
    "rope_scaling": scaling
    and {"rope_type": "llama3"}
    | {theirs: getattr(scaling, our) for our, theirs in _LLAMA3_FIELDS.items()},
    "tie_word_embeddings": architecture.tied_embeddings,
    # Null, not absent: Llama's class would fill in ids 1 and 2.
    **{
      name: token_ids.get(name)
      for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    },
    "torch_dtype": dtype,
    "use_cache": True,
  }


def refuse_unsupported(
  fields: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]], where: str
) -> None:
  """Returns nothing if fields have values that are implemented.

  Args:
    only: field -> the values that it may have; None: it may be absent.
    where: file and group, for the message's beginning.

  Raises:
    ConfigError: naming the first field that has another value.
  """
  for name, allowed in only.items():
    if fields.get(name) not in allowed:
      raise errors.ConfigError(
        f"{where}{name} {fields.get(name)!r} is not supported, only "
        f"{allowed[0]!r}"
      )


def _rope(
  fields: Mapping[str, Any], where: str
) -> tuple[float, presets.Llama3Scaling | None]:
  # transformers 5 writes rope_parameters, with theta inside; older versions
  # rope_scaling (whose rope_type was called type once), with theta beside it.
  name = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
  rope = fields.get(name) or {}
  if not isinstance(rope, dict):
    raise errors.ConfigError(f"{where}{name} must be an object, got {rope!r}")
  kind = rope.get("rope_type", rope.get("type", None if rope else "default"))
  if set(rope) == {"rope_theta"}:
    kind = "default"
  if kind not in ("default", "llama3"):
    raise errors.ConfigError(
      f"{where}{name} of type {kind!r} is not supported, only 'default' and "
      "'llama3'"
    )
  refuse_unsupported(rope, _ROPE_ONLY, where)
  theta = positive_number({**fields, **rope}, "rope_theta", where, 10000.0)
  if kind == "default":
    return theta, None
  scaling = {
    ours: positive_number(rope, theirs, f"{where}{name}.")
    for ours, theirs in _LLAMA3_FIELDS.items()
  }
  original = int(scaling.pop("original_max_positions"))
  return theta, presets.Llama3Scaling(
    original_max_positions=original, **scaling
  )


def positive_number(
  fields: Mapping[str, Any],
  name: str,
  where: str,
  default: float | None = None,
) -> float:
  """Returns a field's value, the default where it is absent or null.

  Args:
    where: file and group, for the message's beginning.

  Raises:
    ConfigError: it is not a positive number.
  """
  value = fields.get(name)
  value = default if value is None else value
  if isinstance(value, (int, float)) and value > 0:
    return float(value)
  raise errors.ConfigError(
    f"{where}{name} must be a positive number, got {value!r}"
  )
