"""Supervised fine-tuning alone: the baseline that must not be faulty."""

from bilevel_jax import config
from bilevel_jax.methods import contract
from bilevel_jax.types import StepBatch, TrainState


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns SFT: base <- base - lr grad L_SFT(base), on demonstrations."""
  del settings
  gradient = ingredients.gradient(ingredients.problem.upper)
  optimizers = ingredients.optimizers

  def update(state: TrainState, batch: StepBatch):
    sft = gradient(state.base, None, batch.sft)
    state, norms = contract.advance(state, optimizers, {"base": sft.base})
    return state, {"sft/loss": sft.loss, **norms}

  return contract.Method(
    trains_adapter=False,
    init=lambda base, adapter: contract.new_state(optimizers, base=base),
    plan=lambda step: contract.Plan(rollouts=False, demonstrations=True),
    update=update,
  )
