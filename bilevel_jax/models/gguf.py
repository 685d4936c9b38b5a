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

from bilevel_jax import config, types
from bilevel_jax.models import huggingface_layout, presets, safetensors_files

FAMILIES = ("llama", "qwen2", "qwen3")
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
# The fields that are read, after the family's name and a dot.
_READ = {
  "block_count",
  "context_length",
  "embedding_length",
  "feed_forward_length",
  "attention.head_count",
  "attention.head_count_kv",
  "attention.key_length",
  "attention.value_length",
  "attention.layer_norm_rms_epsilon",
  "rope.dimension_count",
  "rope.freq_base",
  "vocab_size",
}
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


def load(
  path: str | pathlib.Path,
) -> tuple[presets.Architecture, types.Tree]:
  """Returns the architecture and the base, in float32 numpy arrays.

  Args:
    path: a .gguf file of llama, qwen2 or qwen3, in any of QUANTISATIONS.

  Raises:
    ConfigError: not such a file, or something in it that is not implemented.
  """
  architecture = read_architecture(path)
  tensors = {tensor.name: tensor for tensor in open_file(path).tensors}
  tree = huggingface_layout.layout(architecture)
  expected = {
    _gguf_name(name): weight.shape
    for weight in jax.tree.leaves(tree)
    for name in weight.names
  }
  safetensors_files.check(
    {  # shapes only: nothing is dequantised yet
      name: np.broadcast_to(np.float32(0), tuple(tensor.shape[::-1]))
      for name, tensor in tensors.items()
    },
    expected,
    pathlib.Path(path),
    (_ROPE_FACTORS,),
  )
  for name in expected:
    if (kind := tensors[name].tensor_type.name) not in QUANTISATIONS:
      raise config.ConfigError(
        f"{path}: {name} must be one of {', '.join(QUANTISATIONS)}, got {kind}"
      )

  def read(weight: huggingface_layout.Weight) -> np.ndarray:
    shape = weight.shape[::-1] if weight.transposed else weight.shape
    out = np.empty((len(weight.names), *shape), np.float32)
    for i, name in enumerate(map(_gguf_name, weight.names)):
      tensor = tensors[name]
      value = gguf.dequantize(tensor.data, tensor.tensor_type)
      if architecture.family == "llama" and ".attn_q." in name:
        value = _unpermute(value, architecture.heads)
      if architecture.family == "llama" and ".attn_k." in name:
        value = _unpermute(value, architecture.kv_heads)
      out[i] = value.T if weight.transposed else value
    return out if weight.stacked else out[0]

  return architecture, jax.tree.map(read, tree)


def read_architecture(path: str | pathlib.Path) -> presets.Architecture:
  """Returns the architecture that a file's metadata describes.

  Args:
    path: a .gguf file.

  Raises:
    ConfigError: not a GGUF file, an unknown architecture, or a field that
      changes the computation in a way that is not implemented.
  """
  reader = open_file(path)
  family = read_field(reader, "general.architecture")
  if family not in FAMILIES:
    raise config.ConfigError(
      f"{path}: general.architecture must be one of {', '.join(FAMILIES)}, got "
      f"{family!r}"
    )
  if read_field(reader, "split.count", 1) > 1:
    raise config.ConfigError(
      f"{path}: split.count must be 1 (join the parts with llama-gguf-split), "
      f"got {read_field(reader, 'split.count')}"
    )
  fields = {
    name.removeprefix(f"{family}."): read_field(reader, name)
    for name in reader.fields
    if name.startswith(f"{family}.")
  }
  _refuse_unsupported(fields, f"{path}: {family}.")

  def number(kind: type, name: str, default: Any = None) -> Any:
    value = fields.get(name, default)
    if type(value) is not kind or value <= 0:
      raise config.ConfigError(
        f"{path}: {family}.{name} must be a positive {kind.__name__}, got "
        f"{value!r}"
      )
    return value

  count = functools.partial(number, int)
  width, heads = count("embedding_length"), count("attention.head_count")
  head_dim = count("attention.key_length", width // heads)
  for name in ("attention.value_length", "rope.dimension_count"):
    if fields.get(name, head_dim) != head_dim:
      raise config.ConfigError(
        f"{path}: {family}.{name} must be the head's {head_dim}, got "
        f"{fields[name]}"
      )
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  if "token_embd.weight" not in tensors:
    raise config.ConfigError(f"{path} must have token_embd.weight, got none")
  theta = _shortest(number(float, "rope.freq_base", 10000.0))
  return presets.Architecture(
    family=family,
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
    attention_bias=family == "qwen2",
    qk_norm=family == "qwen3",
  )


def open_file(path: str | pathlib.Path) -> gguf.GGUFReader:
  """Returns a reader of the file: metadata parsed, tensors memory-mapped.

  Args:
    path: a .gguf file.

  Raises:
    ConfigError: there is no such file, or it is no GGUF file or cut short.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise config.ConfigError(f"{path} must be a GGUF file, got no such file")
  status = path.stat()
  return _open(path.resolve(), status.st_mtime_ns, status.st_size)


def read_field(reader: gguf.GGUFReader, name: str, default: Any = None) -> Any:
  """Returns a field of the metadata as Python values, or the default.

  Args:
    reader: of the file.
    name: of the field.
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
    raise config.ConfigError(
      f"{path} must be a complete GGUF file, got: {error}"
    ) from error


def _refuse_unsupported(fields: Mapping[str, Any], where: str) -> None:
  for name, value in fields.items():
    if name in _ONLY and value != _ONLY[name]:
      raise config.ConfigError(
        f"{where}{name} must be {_ONLY[name]!r}, got {value!r}"
      )
    if name not in _READ and name not in _ONLY:
      raise config.ConfigError(
        f"{where}{name} is not supported, got {str(value)[:80]}"
      )


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
  half = head_dim // 2
  turns = scaling.original_max_positions / (2 * np.pi)
  turns *= theta ** -(np.arange(half) / half)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  kept = np.clip((turns - low) / (high - low), 0, 1)
  factors = 1 / (kept + (1 - kept) / scaling.factor)
  if stored.shape != factors.shape or not np.allclose(
    stored, factors, rtol=1e-4
  ):
    raise config.ConfigError(
      f"{path}: {_ROPE_FACTORS} must be the factors of Llama 3's RoPE scaling "
      f"({_LLAMA3}), got {stored.tolist()}"
    )
  return scaling
