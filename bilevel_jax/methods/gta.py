"""GTA's gradient combiner: no SFT where it opposes RL (arXiv 2509.12108)."""

import jax.numpy as jnp

from bilevel_jax import config
from bilevel_jax.methods import contract, updates


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns grad L_RL + weight grad L_SFT, or grad L_RL alone.

  Alone where the cosine of the two, over the whole tree, is below 0: a rule on
  gradients that is not the gradient of any one loss.
  """
  weight = settings.gta.sft_weight

  def weigh(state, sft, rl, agreement):
    del state, sft, rl
    return updates.Mix(jnp.where(agreement.cosine < 0, 0.0, weight), 1.0)

  return updates.joint_method(ingredients, weigh)
