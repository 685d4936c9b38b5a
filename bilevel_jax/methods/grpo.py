"""Reinforcement learning alone, from the base: GRPO (arXiv 2402.03300)."""

from bilevel_jax import config
from bilevel_jax.methods import contract, diagnostics
from bilevel_jax.types import StepBatch, TrainState


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns GRPO: base <- base - lr grad L_RL(base), on its own rollouts."""
  del settings
  gradient = ingredients.gradient(ingredients.problem.lower)
  optimizers = ingredients.optimizers

  def update(state: TrainState, batch: StepBatch):
    rl = gradient(state.base, None, batch.rl)
    state, norms = contract.advance(state, optimizers, {"base": rl.base})
    return state, {
      "rl/loss": rl.loss,
      **diagnostics.rollout_metrics(batch.rl, rl.aux),
      **norms,
    }

  return contract.Method(
    trains_adapter=False,
    init=lambda base, adapter: contract.new_state(optimizers, base=base),
    plan=lambda step: contract.Plan(rollouts=True, demonstrations=False),
    update=update,
  )
