"""Weights from anywhere: a directory, a run, the hub, or a GGUF file."""

import pathlib
from typing import NamedTuple

from bilevel_jax.models import gguf, gguf_tokenizer, huggingface, presets
from bilevel_jax.types import Tree


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
    source: a Hugging Face directory, a run directory, whose export is meant, a
      hub id, or a .gguf file.
    scratch: a directory for what is written of a GGUF file's tokenizer.
    revision: branch, tag or commit of a hub id.

  Raises:
    ConfigError: it cannot be found or read.
  """
  if source.endswith(".gguf"):
    architecture, base = gguf.load(source)
    gguf_tokenizer.write(source, scratch)
    return Source(architecture, base, scratch)
  export = pathlib.Path(source, "export")
  files = export if export.is_dir() else huggingface.resolve(source, revision)
  architecture = huggingface.read_architecture(files)
  return Source(architecture, huggingface.load_base(files, architecture), files)
