"""Hugging Face directories: found, read into sharded arrays, written."""

import pathlib
import re
from collections.abc import Mapping

import numpy as np

from bilevel_jax import checksums, errors, types
from bilevel_jax.models import presets
from bilevel_jax.weights import (
  huggingface_config,
  huggingface_export,
  huggingface_names,
  peft_files,
  safetensors_files,
)

read_architecture = huggingface_config.read_architecture
export = huggingface_export.export
export_adapter = peft_files.export_adapter
load_adapter = peft_files.load_adapter

_HUB_PATTERNS = (
  "config.json",
  "generation_config.json",
  "model*.safetensors",
  safetensors_files.INDEX_FILE,
  *huggingface_export.TOKENIZER_FILES,
)
_HEAD = "lm_head.weight"
_ROWS = 4096  # of two matrices, that are compared at a time
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def resolve(weights: str, revision: str | None = None) -> pathlib.Path:
  """Returns the local directory of weights, fetched from the hub if need be.

  Args:
    weights: a directory, or a hub id such as Qwen/Qwen2.5-0.5B.
    revision: branch, tag or commit on the hub; None: its default.

  Raises:
    ConfigError: no such directory, or the hub does not give it to us.
  """
  path = pathlib.Path(weights).expanduser()
  if path.is_dir():
    return path
  if path.exists():
    raise errors.ConfigError(f"{weights} is a file, not a model directory")
  if not _HUB_ID.fullmatch(weights):
    raise errors.ConfigError(f"{weights} is not a directory")
  # Imported here: a run on local weights needs no hub.
  import huggingface_hub
  from huggingface_hub import errors as hub_errors

  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        weights, revision=revision, allow_patterns=list(_HUB_PATTERNS)
      )
    )
  except hub_errors.GatedRepoError:
    reason = "its owner wants terms accepted and a login (hf auth login)"
  except hub_errors.RepositoryNotFoundError:
    reason = "the hub has no such public repository"
  except hub_errors.RevisionNotFoundError:
    reason = f"the repository has no revision {revision!r}"
  # The hub's client raises many unrelated kinds; the user needs one sentence.
  except Exception as error:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
  raise errors.ConfigError(
    f"{weights} is not a directory and was not fetched from the hub: {reason}"
  )


def load_base(
  directory: str | pathlib.Path,
  architecture: presets.Architecture,
  shardings: types.Tree | None = None,
) -> types.Tree:
  """Returns the base in float32, each process reading only its own shards.

  Args:
    architecture: from `read_architecture`, or any that fits the files.
    shardings: the tree of `base` with a Sharding for each array; None puts
      everything on the first device.

  Raises:
    ConfigError: a file or tensor is missing, has another shape, or is one
      that the architecture does not have; embeddings that are tied have
      another head beside them; or a file is not as it was written.
  """
  directory = pathlib.Path(directory)
  if what := checksums.damage(directory):
    raise errors.ConfigError(
      f"{directory} is damaged: {what} (where they were changed on purpose, "
      f"delete {checksums.FILE})"
    )
  tensors = open_base(directory, architecture)
  if architecture.tied_embeddings and _HEAD in tensors:
    _check_tie(tensors, directory)
  tree = huggingface_names.names(architecture)
  return safetensors_files.read_arrays(tree, tensors, shardings)


def open_base(
  directory: str | pathlib.Path, architecture: presets.Architecture
) -> dict[str, safetensors_files.Tensor]:
  """Returns the tensors of a directory, of which nothing is read yet.

  Raises:
    ConfigError: as `load_base`; a head beside a tie is compared there.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise errors.ConfigError(f"{directory} is not a directory")
  tensors = safetensors_files.open_directory(directory)
  # inv_freq is a buffer that old files stored; it follows from config.json.
  ignored = ("rotary_emb.inv_freq",)
  if architecture.tied_embeddings:
    ignored += (_HEAD,)
  huggingface_names.check_base(
    {name: tensor.shape for name, tensor in tensors.items()},
    architecture,
    directory,
    ignored=ignored,
  )
  return tensors


def _check_tie(
  tensors: Mapping[str, safetensors_files.Tensor], directory: pathlib.Path
) -> None:
  # transformers 5 takes the head where it is another matrix, 4 does not.
  head, embedding = tensors[_HEAD], tensors[huggingface_names.EMBEDDING]
  count = embedding.shape[0]
  parts = [(slice(i, min(i + _ROWS, count)),) for i in range(0, count, _ROWS)]
  if head.shape != embedding.shape or not all(
    np.array_equal(head[part], embedding[part]) for part in parts
  ):
    raise errors.ConfigError(
      f"{directory}: tie_word_embeddings must be false beside a {_HEAD} that "
      f"is not {huggingface_names.EMBEDDING}, got true"
    )
