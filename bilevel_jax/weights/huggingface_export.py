"""A Hugging Face directory of the policy: the adapter folded into the base."""

import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bilevel_jax import checksums, errors, types
from bilevel_jax.models import lora, presets, quantised
from bilevel_jax.weights import (
  huggingface_config,
  huggingface_names,
  safetensors_files,
)

TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "tokenizer.model",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "chat_template.json",
  "vocab.json",
  "merges.txt",
)
DTYPES = {"float32": "F32", "bfloat16": "BF16"}
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_STAGE = ".writing"
# With another number of shards, the old ones would mislead a reader.
_SHARDS = ("model.safetensors*", "model-?????-of-?????.safetensors")


def export(
  directory: str | pathlib.Path,
  architecture: presets.Architecture,
  base: types.Tree,
  adapter: types.Tree | None = None,
  scale: float = 1.0,
  *,
  source_directory: str | pathlib.Path | None = None,
  dtype: str = "float32",
  shard_bytes: int = 5_000_000_000,
  progress: Callable[[int, int], Any] | None = None,
) -> pathlib.Path:
  """Returns `directory`, now holding base + scale * A @ B for transformers.

  Everything is written to a folder inside `directory` and moved out at the
  end, config.json last: killed at any time, the directory holds the export
  that was there before, or none that loads, or the new one. Every process of
  a run must call this; the first one writes.

  Args:
    directory: where to write; other files in it are left alone.
    adapter: {target: {"A": [L, in, r], "B": [L, r, out]}}, or None.
    source_directory: where tokenizer, generation config and token ids are
      copied from.
    dtype: float32 or bfloat16, of the file.
    shard_bytes: most bytes of tensors in one file.
    progress: called for each tensor with (bytes so far, bytes in all).

  Raises:
    ConfigError: unknown dtype, a family that transformers does not have, or a
      directory that cannot be written.
  """
  directory = pathlib.Path(directory)
  if dtype not in DTYPES:
    raise errors.ConfigError(
      f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}"
    )
  source = None if source_directory is None else pathlib.Path(source_directory)
  generation = _read(source, "generation_config.json")
  known = {**generation, **_read(source, "config.json")}
  ids = {k: known[k] for k in _TOKEN_IDS if known.get(k) is not None}
  fields = huggingface_config.config_fields(architecture, dtype, ids)

  writes = jax.process_index() == 0
  stage = make_stage(directory) if writes else None
  file_dtype = safetensors_files.DTYPES[DTYPES[dtype]]
  shapes = _shapes(architecture)
  sizes = {n: math.prod(s) * file_dtype.itemsize for n, s in shapes.items()}
  shards = _split(sizes, shard_bytes)
  arrays, done = _arrays(architecture, base, adapter, scale), 0

  def counted(names: Sequence[str]) -> Iterator[np.ndarray]:
    nonlocal done
    for name, array in zip(names, arrays, strict=False):
      done += sizes[name]
      if progress is not None:
        progress(done, sum(sizes.values()))
      yield array

  for name, names in shards.items():
    safetensors_files.write_file(
      stage and stage / name,
      {n: shapes[n] for n in names},
      file_dtype,
      counted(names),
    )
  if stage is None:
    return directory
  if len(shards) > 1:
    index = {
      "metadata": {
        "total_parameters": sum(map(math.prod, shapes.values())),
        "total_size": sum(sizes.values()),
      },
      "weight_map": {n: name for name, names in shards.items() for n in names},
    }
    write_json(stage / safetensors_files.INDEX_FILE, index)
  for name in TOKENIZER_FILES:
    if source is not None and (source / name).exists():
      shutil.copyfile(source / name, stage / name)
  if generation or ids:
    write_json(stage / "generation_config.json", {**ids, **generation})
  checksums.write(stage, [stage / name for name in shards])
  write_json(stage / "config.json", fields)
  publish(stage, directory, "config.json", stale=_SHARDS)
  return directory


def gather_layers(array: types.Array) -> np.ndarray:
  """Returns the whole array on the host; every process must call this.

  Args:
    array: [...], in numpy, or in JAX with any sharding.
  """
  if isinstance(array, jax.Array) and not array.is_fully_addressable:
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
  return np.asarray(array)


def make_stage(directory: pathlib.Path) -> pathlib.Path:
  """Returns an empty folder inside `directory`, to write an export in.

  Raises:
    ConfigError: it cannot be written.
  """
  stage = directory / _STAGE
  try:
    shutil.rmtree(stage, ignore_errors=True)  # left by one that was killed
    stage.mkdir(parents=True)
  except OSError as error:
    raise errors.ConfigError(
      f"{directory} cannot be written: {error.strerror}"
    ) from None
  return stage


def publish(
  stage: pathlib.Path,
  directory: pathlib.Path,
  last: str,
  stale: tuple[str, ...] = (),
) -> None:
  """Returns nothing; moves an export out of its stage, one file last.

  Args:
    last: the file without which the directory is not taken for an export.
    stale: patterns of an earlier export's files, to be removed.
  """
  (directory / last).unlink(missing_ok=True)
  for pattern in stale:
    for old in directory.glob(pattern):
      old.unlink()
  for path in sorted(stage.iterdir(), key=lambda p: p.name == last):
    path.replace(directory / path.name)
  stage.rmdir()


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  """Returns nothing; writes a JSON object as transformers does."""
  path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _read(source: pathlib.Path | None, name: str) -> dict[str, Any]:
  if source is None or not (source / name).exists():
    return {}
  return huggingface_config.read_object(source / name)


def _parts(tree: types.Tree, layers: int) -> Iterator[tuple[types.Tree, int]]:
  # The order of a file: embedding, layer by layer, final norm, head.
  yield tree["embedding"], 0
  for i in range(layers):
    yield tree["layers"], i
  yield {k: v for k, v in tree.items() if k not in ("embedding", "layers")}, 0


def _shapes(architecture: presets.Architecture) -> dict[str, tuple[int, ...]]:
  tree = huggingface_names.names(architecture)
  return {
    weight.names[i]: weight.shape
    for part, i in _parts(tree, architecture.layers)
    for weight in jax.tree.leaves(part)
  }


def _arrays(
  architecture: presets.Architecture,
  base: types.Tree,
  adapter: types.Tree | None,
  scale: float,
) -> Iterator[np.ndarray]:
  tree = huggingface_names.names(architecture)
  places = _parts(tree, architecture.layers)
  values = _parts(base, architecture.layers)
  for (part, i), (value, _) in zip(places, values, strict=True):
    if part is tree["layers"]:
      value, factors = jax.tree.map(lambda x, i=i: x[i], (value, adapter))
      value = quantised.expand_layer(value)
      value = lora.merge_layer(value, factors, scale)
    for weight, leaf in zip(
      jax.tree.leaves(part), jax.tree.leaves(value), strict=True
    ):
      array = gather_layers(leaf)
      yield array.T if weight.transposed else array


def _split(sizes: Mapping[str, int], shard_bytes: int) -> dict[str, list[str]]:
  shards: list[list[str]] = [[]]
  filled = 0
  for name, size in sizes.items():
    if shards[-1] and filled + size > shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(name)
    filled += size
  if len(shards) == 1:
    return {safetensors_files.SINGLE_FILE: shards[0]}
  return {
    f"model-{i:05}-of-{len(shards):05}.safetensors": names
    for i, names in enumerate(shards, 1)
  }
