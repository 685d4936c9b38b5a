"""GGUF files: the weights of llama.cpp, dequantised to `base`.

A file's metadata says what config.json would, under the names that llama.cpp
gives them (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import functools
import math
import pathlib
import reprlib
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
_MOST_ELEMENTS = 2**22  # of an array: a vocabulary's merges are 2^19
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
  name = read_field(reader, "general.architecture", str)
  if name not in FAMILIES:
    raise errors.ConfigError(
      f"{path}: general.architecture must be one of {', '.join(FAMILIES)}, got "
      f"{name!r}"
    )
  family = FAMILIES[name]
  if (parts := read_field(reader, "split.count", int, 1)) > 1:
    raise errors.ConfigError(
      f"{path}: split.count must be 1 (join the parts with llama-gguf-split), "
      f"got {parts}"
    )
  prefix, where = f"{name}.", f"{path}: {name}."
  # Each is taken out as it is understood; what is left is refused.
  fields = {
    key.removeprefix(prefix): read_field(reader, key, object)
    for key in reader.fields
    if key.startswith(prefix)
  }

  def number(kind: type, key: str, default: Any = None) -> Any:
    value = fields.pop(key, default)
    if type(value) is not kind or not 0 < value < math.inf:
      raise errors.ConfigError(
        f"{where}{key} must be a positive {kind.__name__}, got "
        f"{reprlib.repr(value)}"
      )
    return value

  count = functools.partial(number, int)
  width, heads = count("embedding_length"), count("attention.head_count")
  head_dim = count("attention.key_length", width // heads)
  for key in ("attention.value_length", "rope.dimension_count"):
    if (size := fields.pop(key, head_dim)) != head_dim:
      raise errors.ConfigError(
        f"{where}{key} must be the head's {head_dim}, got {reprlib.repr(size)}"
      )
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  embedding = tensors.get("token_embd.weight")
  if embedding is None or len(embedding.shape) != 2:
    raise errors.ConfigError(
      f"{path} must have a matrix token_embd.weight, got "
      f"{'none' if embedding is None else embedding.shape.tolist()}"
    )
  theta = _shortest(number(float, "rope.freq_base", 10000.0))
  fields.pop("vocab_size", None)  # the tensor's rows say it
  architecture = presets.Architecture(
    family=name,
    vocab_size=int(embedding.shape[1]),
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
        f"{where}{key} is not supported, got {reprlib.repr(value)}"
      )
    if value != _ONLY[key]:
      raise errors.ConfigError(
        f"{where}{key} must be {_ONLY[key]!r}, got {reprlib.repr(value)}"
      )
  return architecture


def open_file(path: str | pathlib.Path) -> gguf.GGUFReader:
  """Returns a reader of the file: metadata parsed, tensors memory-mapped.

  Raises:
    ConfigError: there is no such file, or it is no GGUF file, cut short, or
      has metadata that no model has.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.ConfigError(f"{path} must be a GGUF file, got no such file")
  status = path.stat()
  return _open(path.resolve(), status.st_mtime_ns, status.st_size)


def read_field(
  reader: gguf.GGUFReader,
  name: str,
  kind: type,
  default: Any = None,
  *,
  each: type | None = None,
) -> Any:
  """Returns a field of the metadata as Python values, or the default.

  Args:
    kind: type of the value; object: any.
    each: type of every element of a list.

  Raises:
    ConfigError: the value is of another type.
  """
  field = reader.get_field(name)
  if field is None:
    return default
  where = f"{reader.data.filename}: {name} must be"
  try:
    value = field.contents()
  except UnicodeDecodeError as error:
    raise errors.ConfigError(f"{where} UTF-8 text, got: {error}") from error
  fits = kind is object or type(value) is kind
  if fits and each and not all(type(element) is each for element in value):
    fits = False
  if not fits:
    of = f" of {each.__name__}" if each else ""
    raise errors.ConfigError(
      f"{where} {kind.__name__}{of}, got {reprlib.repr(value)}"
    )
  return value


class _Reader(gguf.GGUFReader):
  """The library's reader, for files that nobody vouches for.

  That one reads an array an element at a time, as long as a file says that it
  is, and takes what is behind the file's end for nothing.
  """

  def _get(self, offset: int, dtype: Any, count: Any = 1, *rest: Any, **more):
    size = np.dtype(dtype).itemsize * int(count)
    if offset + size > len(self.data):
      raise ValueError(f"{size} bytes at {offset} of {len(self.data)}")
    return super()._get(offset, dtype, count, *rest, **more)

  def _get_field_parts(self, orig_offs: int, raw_type: int):
    if raw_type != gguf.GGUFValueType.ARRAY:
      return super()._get_field_parts(orig_offs, raw_type)
    inner = self._get(orig_offs, np.uint32)
    length = self._get(orig_offs + 4, np.uint64)
    count = int(length[0])
    kind = gguf.GGUFValueType(inner[0])
    if kind == gguf.GGUFValueType.ARRAY or count > _MOST_ELEMENTS:
      raise ValueError(f"an array of {count} {kind.name} in its metadata")
    if kind == gguf.GGUFValueType.STRING:
      return super()._get_field_parts(orig_offs, raw_type)
    values = self._get(orig_offs + 12, self.gguf_scalar_to_np[kind], count)
    kinds = [gguf.GGUFValueType.ARRAY, kind]
    return 12 + values.nbytes, [inner, length, values], [2], kinds


# Parsing a vocabulary takes seconds, and weights and tokenizer both need it.
@functools.lru_cache(maxsize=1)
def _open(path: pathlib.Path, mtime_ns: int, size: int) -> gguf.GGUFReader:
  del mtime_ns, size  # a file that changed is another file
  try:
    return _Reader(path)
  except (ValueError, LookupError, OverflowError, OSError) as error:
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
  first = reprlib.repr(tensor.data.ravel()[:8].tolist())
  plain = layers.frequencies(head_dim, theta, None)
  is_float = tensor.tensor_type == gguf.GGMLQuantizationType.F32
  if is_float and tensor.data.shape == plain.shape:
    factor = float(tensor.data.max())
    scaling = presets.Llama3Scaling(factor=factor, **_LLAMA3)
    factors = plain / layers.frequencies(head_dim, theta, scaling)
    if np.allclose(tensor.data, factors, rtol=1e-4):
      return scaling
  raise errors.ConfigError(
    f"{path}: {_ROPE_FACTORS} must be the {head_dim // 2} factors of Llama 3's "
    f"RoPE scaling ({_LLAMA3}), got {tensor.tensor_type.name} "
    f"{tensor.shape.tolist()} of {first}"
  )
