"""One way to open a model, whatever it is that a user names."""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from bilevel_jax import errors, processes, types
from bilevel_jax.models import lora, presets, transformer
from bilevel_jax.weights import (
  gguf,
  gguf_tokenizer,
  huggingface,
  huggingface_config,
  peft_files,
)

_BLOCKS = 1024  # of a file, that are hashed
_BLOCK_BYTES = 65536


class Opened(NamedTuple):
  """A model whose files fit their description; no weight has been read."""

  architecture: presets.Architecture
  read: Callable[[types.Tree | None], types.Tree]
  """A Sharding for each array of the base -> the base, float32. None: all on
  the first device, or in the host's memory where the file is a GGUF file."""
  tokenizer_files: Callable[[pathlib.Path], pathlib.Path]
  """A directory to write to, where need be -> the directory of tokenizer and
  generation config. Every process of a run must call it."""
  fingerprint: Callable[[], str]
  """A hash that other weights do not have, in a second at most."""
  run: pathlib.Path | None = None
  """Directory of the run that left the weights, if one did."""
  name: str | None = None
  """What transformers and PEFT load the same weights by: a hub id, or the path
  of a directory; None: nothing, as of a GGUF file."""


def open(source: str, *, revision: str | None = None) -> Opened:
  """Returns the model that a source names.

  Args:
    source: a Hugging Face directory, a hub id, a .gguf file, a PEFT adapter,
      which is merged into its base as it is read, or a run directory, whose
      export is meant.
    revision: branch, tag or commit of a hub id.

  Raises:
    ConfigError: it cannot be found, is not a model that is known, has tensors
      that do not fit its description, or is a run without an export.
  """
  if not source:
    raise errors.ConfigError("the weights must have a name, got ''")
  path = pathlib.Path(source).expanduser()
  if source.endswith(".gguf"):
    architecture = gguf.read_architecture(path)
    gguf.open_base(path, architecture)
    return Opened(
      architecture,
      functools.partial(gguf.load_base, path, architecture),
      functools.partial(_written_tokenizer, path),
      functools.partial(_hash, [path]),
    )
  exported = (path / "export").is_dir()
  left = exported or path.name == "export"  # by a run
  run = None
  if left:
    run = path if exported else path.parent
  directory = huggingface.resolve(
    str(path / "export") if exported else source, revision
  )
  if run is not None and not (run / "config.json").is_file():
    run = None
  place = directory / peft_files.FOLDER if left else directory
  alone = not (directory / "config.json").exists()
  if alone and (place / peft_files.CONFIG).exists():
    return _with_adapter(place)._replace(run=run)
  if {"config", "versions"} <= huggingface_config.read_fields(directory).keys():
    raise errors.ConfigError(
      f"{source} is a run that has left no export: it has not come to its last "
      "step, or had checkpoints.export=False"
    )
  architecture = huggingface.read_architecture(directory)
  huggingface.open_base(directory, architecture)
  return Opened(
    architecture,
    functools.partial(huggingface.load_base, directory, architecture),
    lambda _: directory,
    lambda: _hash(sorted(directory.glob("*.safetensors"))),
    run,
    str(directory.absolute()) if path.is_dir() else source,
  )


def _with_adapter(directory: pathlib.Path) -> Opened:
  """Returns the model that a PEFT adapter and its base are together."""
  fits = peft_files.read_base(directory)
  if fits.name is None:
    raise errors.ConfigError(
      f"{directory} is a PEFT adapter that names no base: "
      f"base_model_name_or_path of its {peft_files.CONFIG} must be a string"
    )
  try:
    base = open(fits.name, revision=fits.revision)
  except errors.ConfigError as error:
    raise errors.ConfigError(
      f"{directory} is a PEFT adapter, and its base cannot be opened: {error}"
    ) from error
  if fits.fingerprint not in (None, base.fingerprint()):
    raise errors.ConfigError(
      f"{directory} is an adapter of other weights than {fits.name} has: it "
      "would be another model"
    )
  loaded = peft_files.load_adapter(directory, base.architecture)
  adapter = jax.tree.map(np.asarray, loaded.adapter)  # of no device

  def merged(whole: types.Tree, adapter: types.Tree) -> types.Tree:
    layers = lora.merge_layer(whole["layers"], adapter, loaded.spec.scale)
    return {**whole, "layers": layers}

  def read(shardings: types.Tree | None) -> types.Tree:
    program = jax.jit(merged, donate_argnums=0, out_shardings=shardings)
    return program(base.read(shardings), adapter)

  def fingerprint() -> str:
    own = _hash(sorted(directory.glob("*.safetensors")))
    return hashlib.sha256(f"{base.fingerprint()} {own}".encode()).hexdigest()

  return Opened(base.architecture, read, base.tokenizer_files, fingerprint)


def untrained(
  architecture: presets.Architecture, make_key: Callable[[], jax.Array]
) -> Opened:
  """Returns a model that is in no file: its weights are initialised when read.

  Args:
    make_key: makes the PRNG key that they follow from.
  """

  def initialised(shardings: types.Tree | None) -> types.Tree:
    init = functools.partial(transformer.init, architecture=architecture)
    return jax.jit(init, out_shardings=shardings)(make_key())

  def refuse(_: pathlib.Path) -> pathlib.Path:
    raise errors.ConfigError(
      "tokenizer.path must be set when model.weights is not, got None"
    )

  def fingerprint() -> str:
    described = f"{architecture} {jax.random.key_data(make_key())}"
    return hashlib.sha256(described.encode()).hexdigest()

  return Opened(architecture, initialised, refuse, fingerprint)


def _written_tokenizer(
  file: pathlib.Path, scratch: pathlib.Path
) -> pathlib.Path:
  processes.on_first(lambda: gguf_tokenizer.write_files(file, scratch))
  return scratch


def _hash(files: Sequence[pathlib.Path]) -> str:
  """A hash of names, sizes and at most 1024 blocks of 64 KiB of each file.

  They are at equal distances: training changes all of it.
  """
  found = hashlib.sha256()
  for path in files:
    with path.open("rb") as file:
      size = file.seek(0, 2)
      found.update(f"{path.name} {size} ".encode())
      for start in range(0, size, max(_BLOCK_BYTES, size // _BLOCKS)):
        file.seek(start)
        found.update(file.read(_BLOCK_BYTES))
  return found.hexdigest()
