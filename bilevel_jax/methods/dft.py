"""DFT: SFT with each token weighted by its probability (arXiv 2508.05629)."""

from bilevel_jax.methods import contract, sft
from bilevel_jax.objectives import token_weights

ROLLOUTS = False


def build(options: object, setup: contract.Setup) -> contract.Method:
  """Returns SFT on -sg[p] log p, whatever `sft.token_weight` says."""
  return sft.build(
    options, setup, setup.sft_loss(token_weight=token_weights.by_probability)
  )
