"""Weights from anywhere: a directory, a run, the hub, or a GGUF file."""

import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from bilevel_jax.models import gguf, gguf_tokenizer, huggingface, presets
from bilevel_jax.types import Tree

_BLOCKS = 1024  # of a file, that are hashed
_BLOCK_BYTES = 65536


class Found(NamedTuple):
  """A model whose weights are not read yet."""

  architecture: presets.Architecture
  files: pathlib.Path  # directory of its tokenizer and generation config
  read: Callable[[Tree | None], Tree]
  """Returns the base in float32, from a Sharding for each of its arrays; None:
  on one device. A GGUF file's is in host memory, whatever is asked."""


class Source(NamedTuple):
  """A model that was read."""

  architecture: presets.Architecture
  base: Tree  # float32, on one device
  files: pathlib.Path  # directory of its tokenizer and generation config


def load(
  source: str, scratch: pathlib.Path, *, revision: str | None = None
) -> Source:
  """Returns the model that `source` names.

  Args:
    source: as for `find`.
    scratch: as for `find`.
    revision: as for `find`.

  Raises:
    ConfigError: as `find`.
  """
  found = find(source, scratch, revision=revision)
  return Source(found.architecture, found.read(None), found.files)


def find(
  source: str, scratch: pathlib.Path, *, revision: str | None = None
) -> Found:
  """Returns where the model that `source` names is.

  Args:
    source: a Hugging Face directory, a run directory, whose export is meant, a
      hub id, or a .gguf file.
    scratch: a directory for what is written of a GGUF file's tokenizer.
    revision: branch, tag or commit of a hub id.

  Raises:
    ConfigError: it cannot be found or read.
  """
  if source.endswith(".gguf"):
    architecture = gguf.read_architecture(source)
    gguf_tokenizer.write(source, scratch)
    return Found(architecture, scratch, lambda _: gguf.load(source)[1])
  files = _directory(source, revision)
  architecture = huggingface.read_architecture(files)
  read = functools.partial(huggingface.load_base, files, architecture)
  return Found(architecture, files, read)


def fingerprint(source: str, *, revision: str | None = None) -> str:
  """Returns a hash that other weights do not have, in a second at most.

  Of a file's bytes at most 1024 blocks of 64 KiB are read, at equal distances:
  training changes all of it.

  Args:
    source: as for `find`.
    revision: as for `find`.

  Raises:
    ConfigError: it cannot be found.
  """
  if source.endswith(".gguf"):
    files = [pathlib.Path(source)]
  else:
    files = sorted(_directory(source, revision).glob("*.safetensors"))
  found = hashlib.sha256()
  for path in files:
    with path.open("rb") as file:
      size = file.seek(0, 2)
      found.update(f"{path.name} {size} ".encode())
      for start in range(0, size, max(_BLOCK_BYTES, size // _BLOCKS)):
        file.seek(start)
        found.update(file.read(_BLOCK_BYTES))
  return found.hexdigest()


def _directory(source: str, revision: str | None) -> pathlib.Path:
  export = pathlib.Path(source, "export")
  return export if export.is_dir() else huggingface.resolve(source, revision)
