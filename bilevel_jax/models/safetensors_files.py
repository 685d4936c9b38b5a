"""safetensors files: read by memory map, written as a stream of tensors.

A file is 8 bytes of header length (little-endian), a JSON header of
{name: {dtype, shape, data_offsets}}, and the tensors' bytes, without holes
(https://github.com/huggingface/safetensors, "Format").
"""

import json
import math
import pathlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from bilevel_jax import config

DTYPES = {
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns a file's tensors as views of its memory map: nothing is read yet.

  Args:
    path: a .safetensors file.

  Raises:
    ConfigError: the file is cut short, is something else, or holds a dtype
      that is not a float of 16 or 32 bits.
  """
  broken = config.ConfigError(
    f"{path} is not a complete safetensors file (cut short, or a pointer to "
    f"one): it has {path.stat().st_size} bytes"
  )
  try:
    data = np.memmap(path, np.uint8, "r")
    start = 8 + struct.unpack("<Q", data[:8].tobytes())[0]
    if start > len(data):
      raise broken
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    ends = [entry["data_offsets"][1] for entry in header.values()]
  except (ValueError, struct.error, AttributeError, KeyError, TypeError):
    raise broken from None
  if start + max(ends, default=0) > len(data):
    raise broken
  return {
    name: _view(data[start:], entry, name, path)
    for name, entry in header.items()
  }


def read_directory(directory: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the tensors of model.safetensors, or of all shards of its index.

  Args:
    directory: where the files are.

  Raises:
    ConfigError: there are no such files, or one of them is missing or broken.
  """
  if (directory / SINGLE_FILE).exists():
    return read(directory / SINGLE_FILE)
  if not (directory / INDEX_FILE).exists():
    raise config.ConfigError(_no_weights(directory))
  try:
    index = json.loads((directory / INDEX_FILE).read_text("utf-8"))
    shards = sorted(set(index["weight_map"].values()))
  except (ValueError, KeyError, TypeError, AttributeError):
    raise config.ConfigError(
      f"{directory / INDEX_FILE} must be JSON with a weight_map"
    ) from None
  missing = [name for name in shards if not (directory / name).exists()]
  if missing:
    raise config.ConfigError(
      f"{directory} lacks {len(missing)} of the {len(shards)} files that "
      f"{INDEX_FILE} names: {', '.join(missing)}"
    )
  tensors: dict[str, np.ndarray] = {}
  for name in shards:
    tensors.update(read(directory / name))
  return tensors


def check(
  tensors: Mapping[str, np.ndarray],
  expected: Mapping[str, tuple[int, ...]],
  where: pathlib.Path,
  ignored: tuple[str, ...] = (),
) -> None:
  """Returns nothing if the files hold the expected tensors and no others.

  Args:
    tensors: name -> [...], what the files hold.
    expected: name -> shape.
    where: what to call the files in a message.
    ignored: ends of names that may be there and are not read.

  Raises:
    ConfigError: naming the first tensor that is missing, misshapen or extra.
  """
  missing = [name for name in expected if name not in tensors]
  if missing:
    raise config.ConfigError(
      f"{where} lacks {len(missing)} of {len(expected)} tensors, the first is "
      f"{missing[0]}"
    )
  for name, shape in expected.items():
    if tensors[name].shape != shape:
      raise config.ConfigError(
        f"{where}: {name} must have shape {list(shape)}, got "
        f"{list(tensors[name].shape)}"
      )
  extra = [
    name
    for name in tensors
    if name not in expected and not name.endswith(ignored)
  ]
  if extra:
    raise config.ConfigError(
      f"{where} has {len(extra)} tensors that the architecture does not have, "
      f"the first is {extra[0]}"
    )


def stack(
  views: Sequence[np.ndarray], sharding: jax.sharding.Sharding
) -> jax.Array:
  """Returns the views stacked on axis 0 in float32, read shard by shard.

  Args:
    views: arrays [...] of one shape, memory-mapped, one a layer.
    sharding: of the stacked array.
  """
  shape = (len(views), *views[0].shape)

  def read(index: Any) -> np.ndarray:
    sizes = [len(range(n)[s]) for n, s in zip(shape, index, strict=True)]
    block = np.empty(sizes, np.float32)
    for i, view in enumerate(views[index[0]]):
      block[i] = view[index[1:]]
    return block

  return jax.make_array_from_callback(shape, sharding, read)


def write(
  path: pathlib.Path | None,
  shapes: Mapping[str, tuple[int, ...]],
  dtype: np.dtype,
  arrays: Iterable[np.ndarray],
) -> None:
  """Returns nothing; writes a file, with one tensor in memory at a time.

  Args:
    path: the file, or None to go through `arrays` and write nothing (a
      process that only takes part in gathering them).
    shapes: name -> shape, in the order of `arrays`.
    dtype: dtype of every tensor in the file.
    arrays: the tensors [...], in any float dtype.
  """
  header: dict[str, object] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name, shape in shapes.items():
    begin, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {
      "dtype": _CODES[dtype],
      "shape": list(shape),
      "data_offsets": [begin, end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # the format wants the data on 8 bytes
  if path is None:
    for _ in arrays:
      pass
    return
  with path.open("wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    for array in arrays:
      file.write(np.ascontiguousarray(array, dtype).tobytes())


def _view(
  data: np.ndarray, entry: Mapping, name: str, path: pathlib.Path
) -> np.ndarray:
  dtype = DTYPES.get(entry["dtype"])
  if dtype is None:
    raise config.ConfigError(
      f"{name} in {path} must be {', '.join(DTYPES)}, got {entry['dtype']}"
    )
  begin, end = entry["data_offsets"]
  return data[begin:end].view(dtype).reshape(entry["shape"])


def _no_weights(directory: pathlib.Path) -> str:
  others = sorted(p.name for p in directory.glob("*.bin"))
  if others:
    return (
      f"{directory} holds {others[0]} but no {SINGLE_FILE}: only safetensors "
      "are read, save the model once with transformers to convert it"
    )
  return f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}"
