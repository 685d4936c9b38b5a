"""Reinforcement learning alone, from the base: GRPO (arXiv 2402.03300)."""

from bilevel_jax import config
from bilevel_jax.methods import contract, updates


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns GRPO: base <- base - lr grad L_RL(base), on its own rollouts."""
  del settings
  return contract.Method(
    trains_adapter=False,
    init=lambda base, adapter: contract.new_state(
      ingredients.optimizers, base=base
    ),
    plan=lambda step: contract.Plan(rollouts=True, demonstrations=False),
    update=updates.reinforced(ingredients),
  )
