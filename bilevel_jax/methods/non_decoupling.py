"""How much SFT undoes RL, and RL SFT: a diagnostic (arXiv 2601.07389)."""

import dataclasses

import jax
import jax.numpy as jnp

from bilevel_jax import config
from bilevel_jax.methods import contract, updates
from bilevel_jax.types import StepBatch, TrainState


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns two stages, of SFT and of RL, both measured in every step.

  Each step has rollouts and demonstrations and takes both gradients, of which
  only its stage's moves the base: so the SFT loss and the reward are known
  through both stages, with the gradients' cosine. In the second stage
  `rl/kl_to_reference` is to what the first one made. The order is
  `method.non_decoupling.first`; each stage has a fresh optimiser state.
  """
  options = settings.non_decoupling
  first_updates = round(options.first_share * ingredients.total_updates)
  # The reference is kept whether or not there is a KL term.
  ingredients = ingredients._replace(
    reference_dtype=ingredients.reference_dtype or jnp.float32
  )

  def weigh(state, sft, rl, agreement):
    del sft, rl, agreement
    first = state.updates < first_updates
    of_sft = jnp.float32(first == (options.first == "sft"))
    return updates.Mix(sft_weight=of_sft, rl_weight=1 - of_sft)

  method = updates.joint_method(
    ingredients,
    weigh,
    extra=lambda base: updates.reference_copy(ingredients, base),
  )

  def update(state: TrainState, batch: StepBatch):
    state, metrics = method.update(state, batch)
    fresh = contract.new_state(ingredients.optimizers, base=state.base)
    afresh = dataclasses.replace(
      state,
      optimizer_states=fresh.optimizer_states,
      extra=updates.reference_copy(ingredients, state.base),
    )
    switches = state.updates == first_updates
    choose = lambda new, old: jnp.where(switches, new, old)
    return jax.tree.map(choose, afresh, state), metrics

  return method._replace(
    update=update,
    reference=lambda state: state.extra["reference"],
    every_rollout=True,
  )
