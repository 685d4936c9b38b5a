"""Which Hugging Face tensors each array of `base` is made of."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import jax

from bilevel_jax import errors, types
from bilevel_jax.models import presets

EMBEDDING = "model.embed_tokens.weight"
PROJECTIONS = {
  "q": "self_attn.q_proj",
  "k": "self_attn.k_proj",
  "v": "self_attn.v_proj",
  "o": "self_attn.o_proj",
  "gate": "mlp.gate_proj",
  "up": "mlp.up_proj",
  "down": "mlp.down_proj",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
  """Where a leaf of `base` lives: tensors of one shape, one a layer or one."""

  names: tuple[str, ...]
  shape: tuple[int, ...]  # of each tensor in the file
  stacked: bool = True
  transposed: bool = False  # torch keeps kernels as [out, in]


def names(architecture: presets.Architecture) -> types.Tree:
  """Returns the tree of `base` with a `Weight` for each array."""
  width, head_dim = architecture.width, architecture.head_dim

  def stacked(name: str, *shape: int, transposed: bool = False) -> Weight:
    return Weight(
      names=tuple(
        f"model.layers.{i}.{name}" for i in range(architecture.layers)
      ),
      shape=shape,
      transposed=transposed,
    )

  def single(name: str, *shape: int, transposed: bool = False) -> Weight:
    return Weight(
      names=(name,), shape=shape, stacked=False, transposed=transposed
    )

  layers = {
    "attention_norm": {"scale": stacked("input_layernorm.weight", width)},
    "mlp_norm": {"scale": stacked("post_attention_layernorm.weight", width)},
  }
  for target, (inputs, outputs) in architecture.projections.items():
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
    "embedding": single(EMBEDDING, *vocabulary),
    "layers": layers,
    "final_norm": {"scale": single("model.norm.weight", width)},
  }
  if not architecture.tied_embeddings:
    head = single("lm_head.weight", *vocabulary, transposed=True)
    tree["head"] = {"kernel": head}
  return tree


def shapes(tree: types.Tree) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each tensor of a tree of `Weight`, by name."""
  return {
    name: weight.shape
    for weight in jax.tree.leaves(tree)
    for name in weight.names
  }


def check_base(
  found: Mapping[str, tuple[int, ...]],
  architecture: presets.Architecture,
  where: str | pathlib.Path,
  *,
  rename: Callable[[str], str] = str,
  ignored: tuple[str, ...] = (),
) -> None:
  """Returns nothing if files hold the tensors of `base` and no others.

  Args:
    rename: gives our name for a tensor -> the files'.

  Raises:
    ConfigError: as `check_shapes`.
  """
  # Before a name is made for each: a file may claim any number.
  if architecture.layers > len(found):
    raise errors.ConfigError(
      f"{where} has {len(found)} tensors, too few for {architecture.layers} "
      "layers"
    )
  expected = shapes(names(architecture))
  expected = {rename(name): shape for name, shape in expected.items()}
  check_shapes(found, expected, where, ignored)


def check_shapes(
  found: Mapping[str, tuple[int, ...]],
  expected: Mapping[str, tuple[int, ...]],
  where: str | pathlib.Path,
  ignored: tuple[str, ...] = (),
) -> None:
  """Returns nothing if files hold the expected tensors and no others.

  Args:
    where: what to call the files in a message.
    ignored: ends of names that may be there and are not read.

  Raises:
    ConfigError: naming the first tensor that is missing, misshapen or extra.
  """
  missing = [name for name in expected if name not in found]
  if missing:
    raise errors.ConfigError(
      f"{where} lacks {len(missing)} of {len(expected)} tensors, the first is "
      f"{missing[0]}"
    )
  for name, shape in expected.items():
    if found[name] != shape:
      raise errors.ConfigError(
        f"{where}: {name} must have shape {list(shape)}, got "
        f"{list(found[name])}"
      )
  extra = [
    name
    for name in found
    if name not in expected and not name.endswith(ignored)
  ]
  if extra:
    raise errors.ConfigError(
      f"{where} has {len(extra)} tensors that the architecture does not have, "
      f"the first is {extra[0]}"
    )
