"""Supervised fine-tuning alone: the baseline that must not be faulty."""

from bilevel_jax import config
from bilevel_jax.bilevel import problem
from bilevel_jax.methods import contract, updates


def build(
  settings: config.Method,
  ingredients: contract.Ingredients,
  objective: problem.Objective | None = None,
) -> contract.Method:
  """Returns SFT: base <- base - lr grad L_SFT(base), on demonstrations.

  Args:
    settings: not read.
    ingredients: what it is made from.
    objective: in place of the problem's SFT loss.
  """
  del settings
  return contract.Method(
    trains_adapter=False,
    init=lambda base, adapter: contract.new_state(
      ingredients.optimizers, base=base
    ),
    plan=lambda step: contract.Plan(rollouts=False, demonstrations=True),
    update=updates.supervised(ingredients, objective=objective),
  )
