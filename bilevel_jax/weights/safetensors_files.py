"""safetensors files: read in parts by the library, written as a stream.

The library writes no file whose tensors are not all in memory. A file is 8
bytes of header length (little-endian), a JSON header of {name: {dtype, shape,
data_offsets}}, and the tensors' bytes, without holes
(https://github.com/huggingface/safetensors, "Format").
"""

import dataclasses
import json
import math
import pathlib
import reprlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors

from bilevel_jax import errors, types
from bilevel_jax.data import json_lines
from bilevel_jax.weights import huggingface_names

DTYPES = {
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor in a file. Indexing reads what is asked for, and nothing else."""

  shape: tuple[int, ...]
  dtype: np.dtype
  stored: Any  # the library's slice, which has no type

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    """Returns a part of the tensor."""
    return self.stored[index]


def open_file(path: pathlib.Path) -> dict[str, Tensor]:
  """Returns a file's tensors, of which nothing is read yet.

  Raises:
    ConfigError: the file is cut short, is something else, or holds a dtype
      that is not a float of 16 or 32 bits.
  """
  try:
    file = safetensors.safe_open(path, framework="numpy")
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 -- no dict
  except safetensors.SafetensorError as error:
    raise errors.ConfigError(
      f"{path} is not a complete safetensors file (cut short, or a pointer to "
      f"one): it has {path.stat().st_size} bytes: {error}"
    ) from None
  tensors = {}
  for name, stored in slices.items():
    dtype = DTYPES.get(stored.get_dtype())
    if dtype is None:
      raise errors.ConfigError(
        f"{name} in {path} must be {', '.join(DTYPES)}, got "
        f"{stored.get_dtype()}"
      )
    tensors[name] = Tensor(tuple(stored.get_shape()), dtype, stored)
  return tensors


def open_directory(directory: pathlib.Path) -> dict[str, Tensor]:
  """Returns the tensors of model.safetensors, or of all shards of its index.

  Raises:
    ConfigError: there are no such files, one of them is missing, broken or
      elsewhere, or two have the same tensor.
  """
  if (directory / SINGLE_FILE).is_file():
    return open_file(directory / SINGLE_FILE)
  if not (directory / INDEX_FILE).is_file():
    raise errors.ConfigError(_no_weights(directory))
  where = directory / INDEX_FILE
  named = json_lines.parse(where.read_bytes(), str(where)).get("weight_map")
  if not isinstance(named, dict) or not named:
    raise errors.ConfigError(
      f"{where} must have a weight_map of tensors to files, got "
      f"{reprlib.repr(named)}"
    )
  for tensor, name in named.items():
    # A link is followed: the hub's own cache is made of them.
    plain = isinstance(name, str) and pathlib.Path(name).name == name
    if not plain or name in ("", ".."):
      raise errors.ConfigError(
        f"{where}: weight_map must name files beside it, got "
        f"{reprlib.repr(name)} for {reprlib.repr(tensor)}"
      )
  shards = sorted(set(named.values()))
  missing = [name for name in shards if not (directory / name).is_file()]
  if missing:
    raise errors.ConfigError(
      f"{directory} lacks {len(missing)} of the {len(shards)} files that "
      f"{INDEX_FILE} names: {', '.join(missing)}"
    )
  tensors: dict[str, Tensor] = {}
  for name in shards:
    found = open_file(directory / name)
    if twice := sorted(tensors.keys() & found):
      raise errors.ConfigError(
        f"{directory} must have each tensor in one file, got {twice[0]} in "
        f"{name} and before"
      )
    tensors |= found
  return tensors


def read_arrays(
  places: types.Tree,
  tensors: Mapping[str, Tensor],
  shardings: types.Tree | None = None,
) -> types.Tree:
  """Returns arrays in float32, each process reading only its own shards.

  Args:
    places: a `huggingface_names.Weight` for each array.
    shardings: a Sharding for each array; None: all on the first device.
  """
  if shardings is None:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: device, places)
  return jax.tree.map(
    lambda place, sharding: _read_array(place, tensors, sharding),
    places,
    shardings,
  )


def _read_array(
  place: huggingface_names.Weight,
  tensors: Mapping[str, Tensor],
  sharding: jax.sharding.Sharding,
) -> jax.Array:
  shape = place.shape[::-1] if place.transposed else place.shape
  if place.stacked:
    shape = (len(place.names), *shape)

  def part(name: str, index: tuple[slice, ...]) -> np.ndarray:
    if place.transposed:
      return tensors[name][index[::-1]].T
    return tensors[name][index]

  def shard(index: Any) -> np.ndarray:
    if not place.stacked:
      return part(place.names[0], index).astype(np.float32)
    sizes = [len(range(n)[s]) for n, s in zip(shape, index, strict=True)]
    block = np.empty(sizes, np.float32)
    for i, name in enumerate(place.names[index[0]]):
      block[i] = part(name, index[1:])
    return block

  return jax.make_array_from_callback(shape, sharding, shard)


def write_file(
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


def _no_weights(directory: pathlib.Path) -> str:
  others = sorted(p.name for p in directory.glob("*.bin"))
  if others:
    return (
      f"{directory} holds {others[0]} but no {SINGLE_FILE}: only safetensors "
      "are read, save the model once with transformers to convert it"
    )
  return f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}"
