"""config.json of a Hugging Face directory <-> `Architecture`."""

import pathlib
import reprlib
import sys
from collections.abc import Collection, Mapping
from typing import Any

from bilevel_jax import errors
from bilevel_jax.data import json_lines
from bilevel_jax.models import presets
from bilevel_jax.weights.families import FAMILIES

_short = reprlib.repr  # of a value that may be large or deep
# Fields that change the computation, and the only values we implement: null is
# one of them where transformers reads it so.
_ROPE_ONLY = {"partial_rotary_factor": (1, None)}
_ONLY = _ROPE_ONLY | {
  "hidden_act": ("silu",),
  "mlp_bias": (False,),
  "use_sliding_window": (False,),
  "use_mrope": (False, None),
  "rope_interleaved": (False, None),
  "quantization_config": (None,),
  "is_encoder_decoder": (False,),
  "add_cross_attention": (False,),
}
_READ = (
  "model_type",
  "architectures",
  "layer_types",
  "hidden_size",
  "num_attention_heads",
  "num_key_value_heads",
  "head_dim",
  "vocab_size",
  "num_hidden_layers",
  "intermediate_size",
  "max_position_embeddings",
  "rms_norm_eps",
  "tie_word_embeddings",
  "attention_bias",
  "rope_theta",
  "rope_scaling",
  "rope_parameters",
)
# Fields that change no logit.
_WITHOUT_EFFECT = """
  bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
  sliding_window max_window_layers pretraining_tp use_cache
  attention_dropout initializer_range chunk_size_feed_forward
  dtype torch_dtype use_bfloat16 transformers_version _name_or_path
  name_or_path _commit_hash auto_map tokenizer_class attn_implementation
  _attn_implementation_autoset _flash_attn_2_enabled is_decoder torchscript
  is_llama_config transformers.js_config unsloth_fixed unsloth_version
  model_max_length max_sequence_length tokenizer_model_max_length
  tokenizer_padding_side output_attentions output_hidden_states return_dict
  id2label label2id num_labels problem_type finetuning_task prefix
  task_specific_params pruned_heads tie_encoder_decoder tf_legacy_loss
  cross_attention_hidden_size
  bad_words_ids begin_suppress_tokens diversity_penalty do_sample
  early_stopping encoder_no_repeat_ngram_size epsilon_cutoff eta_cutoff
  exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
  length_penalty max_length min_length no_repeat_ngram_size num_beam_groups
  num_beams num_return_sequences output_scores remove_invalid_values
  repetition_penalty return_dict_in_generate suppress_tokens temperature top_k
  top_p typical_p
""".split()  # noqa: SIM905 -- a list would take 75 lines
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
    ConfigError: no readable config.json, an unknown family, a field that is
      not known or whose value changes the computation in a way that is not
      implemented, or two fields that contradict each other.
  """
  fields = read_fields(directory)
  where = f"{pathlib.Path(directory) / 'config.json'}: "
  name = fields.get("model_type")
  if name not in FAMILIES:
    raise errors.ConfigError(
      f"{where}model_type must be one of {', '.join(FAMILIES)}, got "
      f"{_short(name)}"
    )
  family = FAMILIES[name]
  only = dict(_ONLY)
  if not family.attention_bias:  # the others have biases whatever a file says
    only["attention_bias"] = (False,)
  refuse_unsupported(fields, only, where)
  refuse_unknown(fields, {*_READ, *_ONLY, *_WITHOUT_EFFECT}, where)
  classes = fields.get("architectures")
  if classes is not None and classes != [family.transformers_class]:
    raise errors.ConfigError(
      f"{where}architectures must be {[family.transformers_class]} beside "
      f"model_type {name}, got {_short(classes)}"
    )
  theta, scaling = _rope(fields, where)

  def count(name: str, default: int | None = None) -> int:
    return positive_count(fields, name, where, default)

  width, heads = count("hidden_size"), count("num_attention_heads")
  layers = count("num_hidden_layers")
  kinds = fields.get("layer_types")
  every = isinstance(kinds, list) and len(kinds) == layers
  if kinds is not None and not (
    every and all(kind == "full_attention" for kind in kinds)
  ):
    raise errors.ConfigError(
      f"{where}layer_types must be 'full_attention' for each of "
      f"num_hidden_layers {layers}, got {_short(kinds)}"
    )
  # The two that may be null where a default is derived.
  given = {k: v for k, v in fields.items() if v is not None}
  kv_heads = positive_count(given, "num_key_value_heads", where, heads)
  head_dim = family.default_head_dim or width // heads
  head_dim = positive_count(given, "head_dim", where, head_dim)
  if heads % kv_heads:
    raise errors.ConfigError(
      f"{where}num_key_value_heads must divide num_attention_heads {heads}, "
      f"got {kv_heads}"
    )
  if head_dim % 2:
    raise errors.ConfigError(f"{where}head_dim must be even, got {head_dim}")
  tied = fields.get("tie_word_embeddings", False)
  if not isinstance(tied, bool):
    raise errors.ConfigError(
      f"{where}tie_word_embeddings must be true or false, got {_short(tied)}"
    )
  return presets.Architecture(
    family=name,
    vocab_size=count("vocab_size"),
    width=width,
    layers=layers,
    heads=heads,
    kv_heads=kv_heads,
    head_dim=head_dim,
    mlp_width=count("intermediate_size"),
    max_positions=count("max_position_embeddings", family.default_positions),
    rope_theta=theta,
    rope_scaling=scaling,
    norm_eps=positive_number(fields, "rms_norm_eps", where, 1e-6),
    tied_embeddings=tied,
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
  return json_lines.parse(path.read_bytes(), str(path))


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
    if name in fields and fields[name] not in allowed:
      raise errors.ConfigError(
        f"{where}{name} {_short(fields[name])} is not supported, only "
        f"{allowed[0]!r}"
      )


def refuse_unknown(
  fields: Mapping[str, Any], known: Collection[str], where: str
) -> None:
  """Returns nothing where every field that is not null is a known one.

  Raises:
    ConfigError: naming the first other one.
  """
  for name, value in fields.items():
    if name not in known and value is not None:
      raise errors.ConfigError(
        f"{where}{name} is not known and might change the model, got "
        f"{_short(value)}"
      )


def _rope(
  fields: Mapping[str, Any], where: str
) -> tuple[float, presets.Llama3Scaling | None]:
  # transformers 5 writes rope_parameters, with theta inside; older versions
  # rope_scaling (whose rope_type was called type once), with theta beside it.
  names = [n for n in ("rope_scaling", "rope_parameters") if fields.get(n)]
  found = [_rope_of(fields, name, where) for name in names or ["rope_scaling"]]
  if found[0] != found[-1]:
    raise errors.ConfigError(
      f"{where}rope_scaling and rope_parameters must say the same, got "
      f"{found[0]} and {found[-1]} (theta, scaling)"
    )
  return found[0]


def _rope_of(
  fields: Mapping[str, Any], name: str, where: str
) -> tuple[float, presets.Llama3Scaling | None]:
  rope = fields.get(name) or {}
  if not isinstance(rope, dict):
    raise errors.ConfigError(
      f"{where}{name} must be an object, got {_short(rope)}"
    )
  kinds = [rope[key] for key in ("rope_type", "type") if key in rope]
  kind = kinds[0] if kinds else "default"
  if kind not in ("default", "llama3"):
    raise errors.ConfigError(
      f"{where}{name} of type {_short(kind)} is not supported, only "
      "'default' and 'llama3'"
    )
  inside = f"{where}{name}."
  if kinds and kinds[-1] != kind:
    raise errors.ConfigError(
      f"{inside}type must be the rope_type beside it, {kind!r}, got "
      f"{_short(kinds[-1])}"
    )
  refuse_unsupported(rope, _ROPE_ONLY, inside)
  known = {"rope_type", "type", "rope_theta", *_ROPE_ONLY}
  if kind == "llama3":
    known |= set(_LLAMA3_FIELDS.values())
  refuse_unknown(rope, known, inside)
  theta = positive_number({**fields, **rope}, "rope_theta", where, 10000.0)
  beside = fields.get("rope_theta")
  if beside is not None and beside != theta:
    raise errors.ConfigError(
      f"{inside}rope_theta must be the rope_theta beside it, "
      f"{_short(beside)}, got {theta!r}"
    )
  if kind == "default":
    return theta, None
  scaling = {
    ours: positive_number(rope, theirs, inside)
    for ours, theirs in _LLAMA3_FIELDS.items()
    if ours != "original_max_positions"
  }
  return theta, presets.Llama3Scaling(
    original_max_positions=positive_count(
      rope, _LLAMA3_FIELDS["original_max_positions"], inside
    ),
    **scaling,
  )


def positive_count(
  fields: Mapping[str, Any],
  name: str,
  where: str,
  default: int | None = None,
) -> int:
  """Returns a field's value, the default where it is absent.

  Args:
    where: file and group, for the message's beginning.

  Raises:
    ConfigError: it is not a positive integer.
  """
  value = fields.get(name, default)
  if type(value) is not int or value < 1:
    raise errors.ConfigError(
      f"{where}{name} must be a positive integer, got {_short(value)}"
    )
  return value


def positive_number(
  fields: Mapping[str, Any],
  name: str,
  where: str,
  default: float | None = None,
) -> float:
  """Returns a field's value, the default where it is absent.

  Args:
    where: file and group, for the message's beginning.

  Raises:
    ConfigError: it is not a positive, finite number.
  """
  value = fields.get(name, default)
  if type(value) in (int, float) and 0 < value <= sys.float_info.max:
    return float(value)
  raise errors.ConfigError(
    f"{where}{name} must be a positive number, got {_short(value)}"
  )
