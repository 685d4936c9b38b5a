"""Hugging Face directories: found, read into sharded arrays, written."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bilevel_jax import config, types
from bilevel_jax.models import huggingface_config, presets, safetensors_files

read_architecture = huggingface_config.read_architecture

PROJECTIONS = {
  "q": "self_attn.q_proj",
  "k": "self_attn.k_proj",
  "v": "self_attn.v_proj",
  "o": "self_attn.o_proj",
  "gate": "mlp.gate_proj",
  "up": "mlp.up_proj",
  "down": "mlp.down_proj",
}
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
_HUB_PATTERNS = (
  "config.json",
  "generation_config.json",
  "model*.safetensors",
  safetensors_files.INDEX_FILE,
  *TOKENIZER_FILES,
)
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
  """Where a leaf of `base` lives: tensors of one shape, one a layer or one."""

  names: tuple[str, ...]
  shape: tuple[int, ...]  # of each tensor in the file
  stacked: bool = True
  transposed: bool = False  # torch keeps kernels as [out, in]


def projection_shapes(
  architecture: presets.Architecture,
) -> dict[str, tuple[int, int]]:
  """Returns {projection: (in, out)} of a layer's seven kernels.

  Args:
    architecture: the sizes.
  """
  width, mlp_width = architecture.width, architecture.mlp_width
  queries = architecture.heads * architecture.head_dim
  keys = architecture.kv_heads * architecture.head_dim
  return {
    "q": (width, queries),
    "k": (width, keys),
    "v": (width, keys),
    "o": (queries, width),
    "gate": (width, mlp_width),
    "up": (width, mlp_width),
    "down": (mlp_width, width),
  }


def layout(architecture: presets.Architecture) -> types.Tree:
  """Returns the tree of `base` with a `Weight` for each array.

  Args:
    architecture: the sizes and switches.
  """
  width, head_dim = architecture.width, architecture.head_dim

  def stacked(name: str, *shape: int, transposed: bool = False) -> Weight:
    return Weight(
      names=tuple(
        f"model.layers.{i}.{name}" for i in range(architecture.layers)
      ),
      shape=shape,
      transposed=transposed,
    )

  layers = {
    "attention_norm": {"scale": stacked("input_layernorm.weight", width)},
    "mlp_norm": {"scale": stacked("post_attention_layernorm.weight", width)},
  }
  for target, (inputs, outputs) in projection_shapes(architecture).items():
    name = PROJECTIONS[target]
    layers[target] = {
      "kernel": stacked(f"{name}.weight", outputs, inputs, transposed=True)
    }
    if architecture.attention_bias and target in "qkv":
      layers[target]["bias"] = stacked(f"{name}.bias", outputs)
  if architecture.qk_norm:
    for target in ("q_norm", "k_norm"):
      name = f"self_attn.{target}.weight"
      layers[target] = {"scale": stacked(name, head_dim)}
  vocabulary = (architecture.vocab_size, width)
  tree: dict[str, types.Tree] = {
    "embedding": Weight(
      names=("model.embed_tokens.weight",), shape=vocabulary, stacked=False
    ),
    "layers": layers,
    "final_norm": {
      "scale": Weight(
        names=("model.norm.weight",), shape=(width,), stacked=False
      )
    },
  }
  if not architecture.tied_embeddings:
    tree["head"] = {
      "kernel": Weight(
        names=("lm_head.weight",),
        shape=vocabulary,
        stacked=False,
        transposed=True,
      )
    }
  return tree


def resolve(weights: str, revision: str | None = None) -> pathlib.Path:
  """Returns the local directory of weights, fetched from the hub if need be.

  Args:
    weights: a directory, or a hub id such as Qwen/Qwen2.5-0.5B.
    revision: branch, tag or commit on the hub; None is its main branch.

  Raises:
    ConfigError: no such directory, or the hub does not give it to us.
  """
  path = pathlib.Path(weights).expanduser()
  if path.is_dir():
    return path
  if path.exists():
    raise config.ConfigError(f"{weights} is a file, not a model directory")
  if not _HUB_ID.fullmatch(weights):
    raise config.ConfigError(f"{weights} is not a directory")
  # Imported here: a run on local weights needs no hub.
  import huggingface_hub
  from huggingface_hub import errors

  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        weights, revision=revision, allow_patterns=list(_HUB_PATTERNS)
      )
    )
  except errors.GatedRepoError:
    reason = "its owner wants terms accepted and a login (hf auth login)"
  except errors.RepositoryNotFoundError:
    reason = "the hub has no such public repository"
  except errors.RevisionNotFoundError:
    reason = f"the repository has no revision {revision!r}"
  except (errors.HfHubHTTPError, OSError, ValueError) as error:
    reason = str(error).strip().split("\n")[0]
  raise config.ConfigError(
    f"{weights} is not a directory and was not fetched from the hub: {reason}"
  )


def load_base(
  directory: str | pathlib.Path,
  architecture: presets.Architecture,
  shardings: types.Tree | None = None,
) -> types.Tree:
  """Returns the base in float32, each process reading only its own shards.

  Args:
    directory: a Hugging Face directory with safetensors, in one file or more.
    architecture: from `read_architecture`, or any that fits the files.
    shardings: the tree of `base` with a Sharding for each array; None puts
      everything on the first device.

  Raises:
    ConfigError: a file or tensor is missing, has another shape, or is one
      that the architecture does not have.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise config.ConfigError(f"{directory} is not a directory")
  tensors = safetensors_files.read_directory(directory)
  tree = layout(architecture)
  expected = {
    name: weight.shape
    for weight in jax.tree.leaves(tree)
    for name in weight.names
  }
  ignored = {"lm_head.weight"} if architecture.tied_embeddings else set()
  check_tensors(tensors, expected, ignored, directory)
  if shardings is None:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: device, tree)
  return jax.tree.map(
    lambda weight, sharding: _load(weight, tensors, sharding), tree, shardings
  )


def check_tensors(
  tensors: Mapping[str, np.ndarray],
  expected: Mapping[str, tuple[int, ...]],
  ignored: set[str],
  where: pathlib.Path,
) -> None:
  """Returns nothing if the files hold the expected tensors and no others.

  Args:
    tensors: what the files hold.
    expected: name -> shape.
    ignored: names that may be there and are not read.
    where: what to call the files in a message.

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
    if name not in expected
    and name not in ignored
    # A buffer that old files stored; it follows from config.json.
    and not name.endswith("rotary_emb.inv_freq")
  ]
  if extra:
    raise config.ConfigError(
      f"{where} has {len(extra)} tensors that the architecture does not have, "
      f"the first is {extra[0]}"
    )


def stack_shards(
  views: Sequence[np.ndarray], sharding: jax.sharding.Sharding
) -> jax.Array:
  """Returns the views stacked on axis 0 in float32, read shard by shard.

  Args:
    views: arrays of one shape, memory-mapped, one a layer.
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


def _load(
  weight: Weight,
  tensors: Mapping[str, np.ndarray],
  sharding: jax.sharding.Sharding,
) -> jax.Array:
  views = [tensors[name] for name in weight.names]
  if weight.transposed:
    views = [view.T for view in views]
  if weight.stacked:
    return stack_shards(views, sharding)
  (view,) = views
  return jax.make_array_from_callback(
    view.shape, sharding, lambda index: view[index].astype(np.float32)
  )
