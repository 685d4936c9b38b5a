"""The paper's baseline of one weighted loss: L_RL + weight L_SFT.

With `method.mixed.adapter` the base and the adapter both descend it: BRIDGE
with one level in place of two, and no RL-only branch.
"""

from bilevel_jax import config
from bilevel_jax.methods import contract, updates


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns the method that descends L_RL + `method.mixed.sft_weight` L_SFT."""
  mix = updates.Mix(sft_weight=settings.mixed.sft_weight, rl_weight=1.0)
  return updates.joint_method(
    ingredients, lambda *gradients: mix, adapter=settings.mixed.adapter
  )
