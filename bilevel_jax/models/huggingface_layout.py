"""Which Hugging Face tensors each array of `base` is made of."""

import dataclasses

from bilevel_jax import types
from bilevel_jax.models import presets

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
