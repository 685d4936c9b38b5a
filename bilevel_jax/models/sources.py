"""Weights from anywhere: a directory, a run, the hub, or a GGUF file."""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from bilevel_jax.models import gguf, gguf_tokenizer, huggingface, presets
from bilevel_jax.types import Tree


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
  export = pathlib.Path(source, "export")
  files = export if export.is_dir() else huggingface.resolve(source, revision)
  architecture = huggingface.read_architecture(files)
  read = functools.partial(huggingface.load_base, files, architecture)
  return Found(architecture, files, read)
