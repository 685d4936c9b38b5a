"""GGUF files: the weights of llama.cpp, dequantised to `base`.

A file's metadata says what config.json would, under the names that llama.cpp
gives them (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import gguf
import jax
import numpy as np

from bilevel_jax import errors, processes, types
from bilevel_jax.models import layers, presets
from bilevel_jax.weights import huggingface_names
from bilevel_jax.weights.families import FAMILIES

QUANTISATIONS = (
  "F32",
  "F16",
  "BF16",
  "Q8_0",
  "Q4_0",
  "Q4_1",
  "Q4_K",
  "Q5_K",
  "Q6_K",
)
# Fields that change the computation, and the only value that we implement.
_ONLY = {"rope.scaling.type": "none", "expert_count": 0}
_NAMES = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  "lm_head": "output",
  "input_layernorm": "attn_norm",
  "post_attention_layernorm": "ffn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}
_ROPE_FACTORS = "rope_freqs.weight"
# Of every Llama from 3.1 to 3.3: a file has the resulting factors alone.
_LLAMA3 = {
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_positions": 8192,
}


def load_base(
  path: str | pathlib.Path,
  architecture: presets.Architecture,
  shardings: types.Tree | None = None,
) -> types.Tree:
  """Returns the base in float32, one array at a time in the host's memory.

  Args:
    path: a .gguf file in any of QUANTISATIONS.
    shardings: the tree of `base` with a Sharding for each array; None leaves
      numpy arrays, all in the host's memory.

  Raises:
    ConfigError: not such a file, or something in it that is not implemented.
  """
  tensors = open_base(path, architecture)
  tree = huggingface_names.names(architecture)
  interleaved = {}
  if FAMILIES[architecture.family].interleaved_gguf:
    interleaved = {"q": architecture.heads, "k": architecture.kv_heads}

  def dequantised(weight: huggingface_names.Weight) -> np.ndarray:
    shape = weight.shape[::-1] if weight.transposed else weight.shape
    out = np.empty((len(weight.names), *shape), np.float32)
    for i, name in enumerate(map(_gguf_name, weight.names)):
      tensor = tensors[name]
      value = gguf.dequantize(tensor.data, tensor.tensor_type)
      for target, heads in interleaved.items():
        if f".attn_{target}." in name:
          value = _unpermute(value, heads)
      out[i] = value.T if weight.transposed else value
    return out if weight.stacked else out[0]

  if shardings is None:
    return jax.tree.map(dequantised, tree)
  return jax.tree.map(
    lambda weight, place: processes.put(dequantised(weight), place),
    tree,
    shardings,
  )


def open_base(
  path: str | pathlib.Path, architecture: presets.Architecture
) -> dict[str, gguf.ReaderTensor]:
  """Returns a file's tensors, of which nothing is dequantised yet.

  Raises:
    ConfigError: as `load_base`.
  """
  tensors = {tensor.name: tensor for tensor in open_file(path).tensors}
  huggingface_names.check_base(
    {name: tuple(t.shape[::-1].tolist()) for name, t in tensors.items()},
    architecture,
    path,
    rename=_gguf_name,
    ignored=(_ROPE_FACTORS,),
  )
  for name, tensor in tensors.items():
    if (kind := tensor.tensor_type.name) not in QUANTISATIONS:
      raise errors.ConfigError(
        f"{path}: {name} must be one of {', '.join(QUANTISATIONS)}, got {kind}"
      )
  return tensors


def read_architecture(path: str | pathlib.Path) -> presets.Architecture:
  """Returns the architecture that a file's metadata describes.

  Raises:
    ConfigError: not a GGUF file, an unknown architecture, or a field that
      changes the computation in a way that is not implemented.
  """
  reader = open_file(path)
  name = read_field(reader, "general.architecture")
  if name not in FAMILIES:
    raise errors.ConfigError(
      f"{path}: general.architecture must be one of {', '.join(FAMILIES)}, got "
      f"{name!r}"
    )
  family = FAMILIES[name]
  if read_field(reader, "split.count", 1) > 1:
    raise errors.ConfigError(
      f"{path}: split.count must be 1 (join the parts with llama-gguf-split), "
      f"got {read_field(reader, 'split.count')}"
    )
  prefix, where = f"{name}.", f"{path}: {name}."
  # Each is taken out as it is understood; what is left is refused.
  fields = {
    key.removeprefix(prefix): read_field(reader, key)
    for key in reader.fields
    if key.startswith(prefix)
  }

  def number(kind: type, key: str, default: Any = None) -> Any:
    value = fields.pop(key, default)
    if type(value) is not kind or value <= 0:
      raise errors.ConfigError(
        f"{where}{key} must be a positive {kind.__name__}, got {value!r}"
      )
    return value

  count = functools.partial(number, int)
  width, heads = count("embedding_length"), count("attention.head_count")
  head_dim = count("attention.key_length", width // heads)
  for key in ("attention.value_length", "rope.dimension_count"):
    if (size := fields.pop(key, head_dim)) != head_dim:
      raise errors.ConfigError(
        f"{where}{key} must be the head's {head_dim}, got {size}"
      )
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  if "token_embd.weight" not in tensors:
    raise errors.ConfigError(f"{path} must have token_embd.weight, got none")
  theta = _shortest(number(float, "rope.freq_base", 10000.0))
  fields.pop("vocab_size", None)  # the tensor's rows say it
  architecture = presets.Architecture(
    family=name,
    vocab_size=int(tensors["token_embd.weight"].shape[1]),
    width=width,
    layers=count("block_count"),
    heads=heads,
    kv_heads=count("attention.head_count_kv", heads),
    head_dim=head_dim,
    mlp_width=count("feed_forward_length"),
    max_positions=count("context_length"),
    rope_theta=theta,
    rope_scaling=_rope_scaling(tensors, head_dim, theta, path),
    norm_eps=_shortest(number(float, "attention.layer_norm_rms_epsilon")),
    tied_embeddings="output.weight" not in tensors,
    attention_bias=family.attention_bias,
    qk_norm=family.qk_norm,
  )
  for key, value in fields.items():
    if key not in _ONLY:
      raise errors.ConfigError(
        f"{where}{key} is not supported, got {str(value)[:80]}"
      )
    if value != _ONLY[key]:
      raise errors.ConfigError(
        f"{where}{key} must be {_ONLY[key]!r}, got {value!r}"
      )
  return architecture


def open_file(path: str | pathlib.Path) -> gguf.GGUFReader:
  """Returns a reader of the file: metadata parsed, tensors memory-mapped.

  Raises:
    ConfigError: there is no such file, or it is no GGUF file or cut short.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.ConfigError(f"{path} must be a GGUF file, got no such file")
  status = path.stat()
  return _open(path.resolve(), status.st_mtime_ns, status.st_size)


def read_field(reader: gguf.GGUFReader, name: str, default: Any = None) -> Any:
  """Returns a field of the metadata as Python values, or the default.

  Args:
    default: where the file has none.
  """
  field = reader.get_field(name)
  return default if field is None else field.contents()


# Parsing a vocabulary takes seconds, and weights and tokenizer both need it.
@functools.lru_cache(maxsize=1)
def _open(path: pathlib.Path, mtime_ns: int, size: int) -> gguf.GGUFReader:
  del mtime_ns, size  # a file that changed is another file
  try:
    return gguf.GGUFReader(path)
  except (ValueError, IndexError, KeyError, OSError) as error:
    raise errors.ConfigError(
      f"{path} must be a complete GGUF file, got: {error}"
    ) from error


def _gguf_name(name: str) -> str:
  stem, kind = name.rsplit(".", 1)
  if stem in _NAMES:
    return f"{_NAMES[stem]}.{kind}"
  _, _, layer, stem = stem.split(".", 3)
  return f"blk.{layer}.{_NAMES[stem]}.{kind}"


def _unpermute(value: np.ndarray, heads: int) -> np.ndarray:
  # llama.cpp turns neighbours (2i, 2i + 1) where we turn (i, i + H/2), and
  # its converter interleaves the rows of q and k of llama-type models so.
  out = value.reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2)
  return out.reshape(value.shape)


def _shortest(value: float) -> float:
  # The decimal that was rounded to float32: 1e-05, not 9.999999747378752e-06.
  return float(str(np.float32(value)))


def _rope_scaling(
  tensors: Mapping[str, gguf.ReaderTensor],
  head_dim: int,
  theta: float,
  path: str | pathlib.Path,
) -> presets.Llama3Scaling | None:
  if _ROPE_FACTORS not in tensors:
    return None
  tensor = tensors[_ROPE_FACTORS]
  stored = gguf.dequantize(tensor.data, tensor.tensor_type)
  scaling = presets.Llama3Scaling(factor=float(stored.max()), **_LLAMA3)
  plain = layers.frequencies(head_dim, theta, None)
  factors = plain / layers.frequencies(head_dim, theta, scaling)
  if stored.shape != factors.shape or not np.allclose(
    stored, factors, rtol=1e-4
  ):
    raise errors.ConfigError(
      f"{path}: {_ROPE_FACTORS} must be the factors of Llama 3's RoPE scaling "
      f"({_LLAMA3}), got {stored.tolist()}"
    )
  return scaling
