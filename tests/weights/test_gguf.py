"""GGUF files written with the `gguf` package, and what is read back."""

import dataclasses
import struct
import time

import gguf as gguf_package
import jax
import numpy as np
import pytest

from bilevel_jax import errors
from bilevel_jax.models import presets
from bilevel_jax.weights import gguf, huggingface_names
from tests import gguf_files
from tests.gguf_files import ARCHITECTURE, WIDTH, random_tensors, write


def as_base(tensors, architecture):
  """The tree of `base` of Hugging Face's tensors, by its documented layout."""
  pick = lambda weight: [
    tensors[n].T if weight.transposed else tensors[n] for n in weight.names
  ]
  return jax.tree.map(
    lambda w: np.stack(pick(w)) if w.stacked else pick(w)[0],
    huggingface_names.names(architecture),
  )


def load(path):
  architecture = gguf.read_architecture(path)
  return architecture, gguf.load_base(path, architecture)


def assert_same(ours, expected):
  jax.tree.map(np.testing.assert_array_equal, ours, expected)


FAMILIES = {
  "llama": ARCHITECTURE,
  "llama untied": dataclasses.replace(ARCHITECTURE, tied_embeddings=False),
  "qwen2": dataclasses.replace(
    ARCHITECTURE, family="qwen2", attention_bias=True
  ),
  "qwen3": dataclasses.replace(
    ARCHITECTURE, family="qwen3", qk_norm=True, heads=2, kv_heads=1, head_dim=96
  ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_weights_come_back_to_the_bit(tmp_path, name):
  architecture = FAMILIES[name]
  tensors = random_tensors(architecture)
  path = write(tmp_path / "model.gguf", tensors, architecture)
  read, base = load(path)
  assert read == architecture
  assert_same(base, as_base(tensors, architecture))


def test_the_published_permutation_is_not_the_identity():
  rows = np.arange(WIDTH, dtype=np.float32)[:, None]
  assert (gguf_files.permute(rows, 4) != rows).any()


def f16(block):
  return float(np.frombuffer(bytes(block), "<f2")[0])


def nibbles(block):
  """Low halves of the bytes, then high halves."""
  return [b & 15 for b in block] + [b >> 4 for b in block]


def slow_q8_0(block):
  d = f16(block[:2])
  return [d * struct.unpack("b", bytes([b]))[0] for b in block[2:]]


def slow_q4_0(block):
  d = f16(block[:2])
  return [d * (q - 8) for q in nibbles(block[2:])]


def slow_q4_1(block):
  d, m = f16(block[:2]), f16(block[2:4])
  return [d * q + m for q in nibbles(block[4:])]


def scale_and_min(j, s):
  """The j-th 6-bit pair of 12 bytes: ggml-quants.c, get_scale_min_k4."""
  if j < 4:
    return s[j] & 63, s[j + 4] & 63
  return (
    (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4),
    (s[j + 4] >> 4) | ((s[j] >> 6) << 4),
  )


def slow_q4_k(block):
  d, dmin, s = f16(block[:2]), f16(block[2:4]), block[4:16]
  out = []
  for j in range(8):
    scale, least = scale_and_min(j, s)
    quants = block[16 + 32 * (j // 2) :][:32]
    for b in quants:
      q = b >> 4 if j % 2 else b & 15
      out.append(d * scale * q - dmin * least)
  return out


def slow_q5_k(block):
  d, dmin, s, high = f16(block[:2]), f16(block[2:4]), block[4:16], block[16:48]
  out = []
  for j in range(8):
    scale, least = scale_and_min(j, s)
    quants = block[48 + 32 * (j // 2) :][:32]
    for i, b in enumerate(quants):
      q = (b >> 4 if j % 2 else b & 15) + 16 * ((high[i] >> j) & 1)
      out.append(d * scale * q - dmin * least)
  return out


def slow_q6_k(block):
  low, high, scales = block[:128], block[128:192], block[192:208]
  d = f16(block[208:210])
  out = []
  for i in range(256):
    half, j, column = i // 128, (i % 128) // 32, i % 32
    b = low[64 * half + 32 * (j % 2) + column]
    q = b >> 4 if j >= 2 else b & 15
    q |= ((high[32 * half + column] >> (2 * j)) & 3) << 4
    scale = struct.unpack("b", bytes([scales[i // 16]]))[0]
    out.append(d * scale * (q - 32))
  return out


# kind -> (slow dequantiser, where its float16 numbers are in a block)
SLOW = {
  "Q8_0": (slow_q8_0, (0,)),
  "Q4_0": (slow_q4_0, (0,)),
  "Q4_1": (slow_q4_1, (0, 2)),
  "Q4_K": (slow_q4_k, (0, 2)),
  "Q5_K": (slow_q5_k, (0, 2)),
  "Q6_K": (slow_q6_k, (208,)),
}


@pytest.mark.parametrize("name", SLOW)
def test_blocks_mean_what_a_slow_loop_says(tmp_path, name):
  """Random bytes as blocks, against the format's definition (ggml-quants.c)."""
  kind = gguf_package.GGMLQuantizationType[name]
  slow, halves = SLOW[name]
  elements, size = gguf_package.GGML_QUANT_SIZES[kind]
  rng = np.random.default_rng(1)
  small = dataclasses.replace(ARCHITECTURE, layers=1, vocab_size=8)
  tensors, encoded = random_tensors(small), {}

  def encode(array):
    blocks = rng.integers(0, 256, (array.size // elements, size), np.uint8)
    for at in halves:
      value = rng.uniform(-1, 1, len(blocks)).astype("<f2")
      blocks[:, at : at + 2] = value.view(np.uint8).reshape(-1, 2)
    rows = blocks.reshape(len(array), -1)
    encoded[array.shape] = rows
    return rows, kind

  # The embedding alone: it is neither transposed nor permuted.
  matrices = {n: a for n, a in tensors.items() if n not in gguf_files.NAMES}
  path = tmp_path / "model.gguf"
  write(
    path,
    {**matrices, "model.norm.weight": tensors["model.norm.weight"]},
    small,
    edit=lambda writer: writer.add_tensor(
      "token_embd.weight",
      encode(tensors["model.embed_tokens.weight"])[0],
      raw_dtype=kind,
    ),
  )
  _, base = load(path)
  (rows,) = encoded.values()
  expected = [v for b in rows.reshape(-1, size) for v in slow(b.tolist())]
  np.testing.assert_allclose(
    base["embedding"].ravel(), expected, rtol=1e-6, atol=1e-6
  )


# Bounds on |error| / (range of the block), by the number of levels.
@pytest.mark.parametrize(
  ("name", "bound"),
  [
    ("F16", 2**-11),
    ("BF16", 2**-8),
    ("Q8_0", 1 / 250),
    ("Q4_0", 1 / 15),
    ("Q4_1", 1 / 29),
  ],
)
def test_quantised_weights_come_back_within_their_step(tmp_path, name, bound):
  """Every matrix, the permuted and transposed ones included."""
  kind = gguf_package.GGMLQuantizationType[name]
  tensors = random_tensors(ARCHITECTURE)
  path = write(
    tmp_path / "model.gguf",
    tensors,
    encode=lambda array: (gguf_package.quants.quantize(array, kind), kind),
  )
  _, base = load(path)

  def close(ours, expected):
    span = np.abs(expected).max() * 2
    np.testing.assert_allclose(ours, expected, atol=bound * span, rtol=0)

  jax.tree.map(close, base, as_base(tensors, ARCHITECTURE))


def llama3_factors(factor, original=8192):
  """convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors, one by one."""
  a, out = ARCHITECTURE, []
  low_wavelength, high_wavelength = original / 1.0, original / 4.0
  for i in range(0, a.head_dim, 2):
    wavelength = 2 * np.pi * a.rope_theta ** (i / a.head_dim)
    if wavelength < high_wavelength:
      out.append(1.0)
    elif wavelength > low_wavelength:
      out.append(factor)
    else:
      smooth = (original / wavelength - 1.0) / (4.0 - 1.0)
      out.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(out, np.float32)


def test_llama3_scaling_is_reconstructed_from_its_factors(tmp_path):
  path = write(
    tmp_path / "model.gguf",
    random_tensors(ARCHITECTURE),
    extra={"rope_freqs.weight": llama3_factors(32.0)},
  )
  architecture, _ = load(path)
  assert architecture.rope_scaling == presets.Llama3Scaling(
    factor=32.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_positions=8192,
  )


def test_other_rope_factors_are_refused(tmp_path):
  path = write(
    tmp_path / "model.gguf",
    random_tensors(ARCHITECTURE),
    extra={"rope_freqs.weight": llama3_factors(8.0, original=4096)},
  )
  with pytest.raises(errors.ConfigError, match=r"rope_freqs.weight must be"):
    gguf.read_architecture(path)


def unsupported_field(writer):
  writer.add_sliding_window(4096)


def set_to(key, value, kind, of=None):
  """An edit of the writer that gives a field another value."""
  KIND = gguf_package.GGUFValueType
  return lambda writer: writer.kv_data[0].__setitem__(
    key,
    gguf_package.gguf_writer.GGUFValue(value, KIND[kind], of and KIND[of]),
  )


def yarn(writer):
  writer.add_rope_scaling_type(gguf_package.RopeScalingType.YARN)


def partial_rope(writer):
  writer.kv_data[0]["llama.rope.dimension_count"].value = 32


def two_parts(writer):
  writer.add_uint16("split.count", 2)


@pytest.mark.parametrize(
  ("edit", "message"),
  [
    (unsupported_field, "llama.attention.sliding_window is not supported"),
    (yarn, "llama.rope.scaling.type must be 'none', got 'yarn'"),
    (partial_rope, "llama.rope.dimension_count must be the head's 64, got 32"),
    (two_parts, "split.count must be 1 .*, got 2"),
    (
      set_to("split.count", "two", "STRING"),
      "split.count must be int, got 'two'",
    ),
    (
      set_to("general.architecture", 5, "UINT32"),
      "general.architecture must be str, got 5",
    ),
    (
      set_to("general.architecture", ["llama"], "ARRAY"),
      r"general.architecture must be str, got \['llama'\]",
    ),
    (
      set_to("general.architecture", b"\xff", "STRING"),
      "general.architecture must be UTF-8 text, got: .* byte 0xff",
    ),
    (
      set_to("llama.block_count", 10**6, "UINT32"),
      "20 tensors, too few for 1000000 layers",
    ),
    (
      set_to("llama.block_count", -1, "INT32"),
      "block_count must be a positive int, got -1",
    ),
    (
      set_to("llama.block_count", True, "BOOL"),
      "block_count must be a positive int, got True",
    ),
    (
      set_to("llama.embedding_length", [256] * 50, "ARRAY"),
      r"embedding_length must be a positive int, got \[256, 256, .*\.\.\.\]",
    ),
    (
      set_to("llama.rope.freq_base", float("nan"), "FLOAT32"),
      "rope.freq_base must be a positive float, got nan",
    ),
    (
      set_to("llama.attention.layer_norm_rms_epsilon", 1e999, "FLOAT32"),
      "layer_norm_rms_epsilon must be a positive float, got inf",
    ),
    (
      set_to("llama.rope.dimension_count", [0] * 99, "ARRAY"),
      r"dimension_count must be the head's 64, got \[0, 0, .*\.\.\.\]",
    ),
  ],
)
def test_what_changes_the_computation_is_refused_by_name(
  tmp_path, edit, message
):
  path = write(tmp_path / "m.gguf", random_tensors(ARCHITECTURE), edit=edit)
  with pytest.raises(errors.ConfigError, match=message):
    load(path)


def test_unknown_architecture_is_refused_by_name(tmp_path):
  other = dataclasses.replace(ARCHITECTURE, family="mamba")
  path = write(tmp_path / "m.gguf", random_tensors(other), other)
  with pytest.raises(errors.ConfigError, match=r"llama, .*, got 'mamba'"):
    gguf.read_architecture(path)


def test_unknown_quantisation_is_refused_by_name(tmp_path):
  kind = gguf_package.GGMLQuantizationType.Q5_0
  path = write(
    tmp_path / "m.gguf",
    random_tensors(ARCHITECTURE),
    encode=lambda array: (gguf_package.quants.quantize(array, kind), kind),
  )
  with pytest.raises(errors.ConfigError, match=r"must be one of F32.*got Q5_0"):
    load(path)


def test_missing_misshapen_and_extra_tensors_are_refused_by_name(tmp_path):
  tensors = random_tensors(ARCHITECTURE)
  broken = {n: a for n, a in tensors.items() if "layers.1.mlp.up" not in n}
  path = write(tmp_path / "1.gguf", broken)
  with pytest.raises(errors.ConfigError, match=r"lacks .*blk.1.ffn_up.weight"):
    load(path)
  tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]
  path = write(tmp_path / "2.gguf", tensors)
  with pytest.raises(
    errors.ConfigError, match=r"output_norm.*\[256\].*\[255\]"
  ):
    load(path)
  path = write(
    tmp_path / "3.gguf",
    random_tensors(ARCHITECTURE),
    extra={"blk.0.attn_q.bias": np.zeros(WIDTH, np.float32)},
  )
  with pytest.raises(errors.ConfigError, match=r"does not have.*attn_q.bias"):
    load(path)


def test_an_embedding_that_is_no_matrix_is_refused(tmp_path):
  tensors = random_tensors(ARCHITECTURE)
  flat = np.zeros(WIDTH, np.float32)
  path = write(
    tmp_path / "m.gguf", tensors | {"model.embed_tokens.weight": flat}
  )
  with pytest.raises(errors.ConfigError, match=r"a matrix .*, got \[256\]"):
    gguf.read_architecture(path)


@pytest.mark.parametrize(
  "factors",
  [
    np.zeros(32, np.float16),
    np.full(32, np.nan, np.float32),
    np.zeros((10, 1000), np.float32),
    np.zeros(0, np.float32),
  ],
)
def test_rope_factors_of_another_kind_are_refused(tmp_path, factors):
  path = write(
    tmp_path / "model.gguf",
    random_tensors(ARCHITECTURE),
    extra={"rope_freqs.weight": factors},
  )
  with pytest.raises(errors.ConfigError, match="must be the 32 factors") as e:
    gguf.read_architecture(path)
  assert len(str(e.value)) < 500


def text(value):
  return struct.pack("<Q", len(value)) + value


def metadata(*values, count=1, tensors=0):
  """A file's header, with one field: its key, its type, and what follows."""
  start = struct.pack("<4sIQQ", b"GGUF", 3, tensors, count)
  return start + text(b"a") + b"".join(values)


U8, U32, STRING, ARRAY = (struct.pack("<I", i) for i in (0, 4, 8, 9))


def long(count):
  return struct.pack("<Q", count)


@pytest.mark.parametrize(
  ("content", "sentence"),
  [
    (metadata(ARRAY, U8, long(10**9)), "an array of 1000000000 UINT8"),
    (metadata(ARRAY, U8, long(2**64 - 1)), "array of 18446744073709551615"),
    (metadata(ARRAY, STRING, long(10**9)), "an array of 1000000000 STRING"),
    (metadata(ARRAY, U8, long(10**6)), "1000000 bytes at 49 of 1049"),
    (metadata(ARRAY, ARRAY * 10**5), "array of .* ARRAY in its metadata"),
    (metadata(ARRAY, STRING, long(2), text(b""), long(2000)), "2000 bytes at"),
    (metadata(STRING, long(2**64 - 1)), "18446744073709551615 bytes at"),
    (metadata(STRING, long(10**12)), "1000000000000 bytes at 45 of 1045"),
    (metadata(struct.pack("<I", 99)), r"99\)? is not a valid GGUFValueType"),
    (
      metadata(ARRAY, struct.pack("<I", 99)),
      r"99\)? is not a valid GGUFValueType",
    ),
    (metadata(U32, U32, count=2**63), "complete GGUF file"),
    (metadata(U32, U32, tensors=2**63), "complete GGUF file"),
  ],
)
def test_a_file_may_not_ask_for_more_than_it_holds(tmp_path, content, sentence):
  path = tmp_path / "m.gguf"
  path.write_bytes(content + bytes(1000))
  start = time.monotonic()
  with pytest.raises(errors.ConfigError, match=sentence) as e:
    gguf.read_architecture(path)
  assert time.monotonic() - start < 5
  assert "\n" not in str(e.value)


def test_an_array_as_long_as_it_says_is_read_at_once(tmp_path):
  path = tmp_path / "m.gguf"
  count = 2**22
  with path.open("wb") as file:
    file.write(metadata(ARRAY, U8, long(count)) + b"\1" * count)
  field = gguf.open_file(path).fields["a"]
  assert len(field.parts) == 6  # a key of two, three types, the elements
  assert field.contents() == [1] * count
  with path.open("wb") as file:  # all of it is there, in no block of the disk
    file.write(metadata(ARRAY, U8, long(10**9)))
    file.truncate(10**9 + 100)
  with pytest.raises(errors.ConfigError, match="an array of 1000000000 UINT8"):
    gguf.open_file(path)


def test_a_file_that_is_no_gguf_is_refused_in_one_sentence(tmp_path):
  whole = write(tmp_path / "m.gguf", random_tensors(ARCHITECTURE)).read_bytes()
  for content in (b"", b"nothing of the kind", whole[:2000], whole[:-2000]):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(errors.ConfigError, match="a complete GGUF file") as e:
      load(path)
    assert "\n" not in str(e.value)
  with pytest.raises(errors.ConfigError, match="no such file"):
    load(tmp_path / "absent.gguf")
