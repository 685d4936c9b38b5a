"""Reinforcement learning alone, from the base: GRPO (arXiv 2402.03300)."""

from bilevel_jax.methods import contract, updates


def build(options: object, setup: contract.Setup) -> contract.Method:
  """Returns GRPO: base <- base - lr grad L_RL(base), on its own rollouts."""
  return updates.rl_method(setup)
