"""One batch of rollouts and demonstrations under one normaliser."""

import jax
import jax.numpy as jnp

from bilevel_jax import config
from bilevel_jax.methods import contract, updates
from bilevel_jax.types import StepBatch, TokenBatch, TrainState


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns the mean over all tokens of a step, whichever kind they are.

  A demonstration's token is a sampled one with the advantage
  `method.data_mix.demonstration_advantage`, so SFT weighs as much as it has
  tokens. One of the recipes of arXiv 2507.07562, whose definition could not
  be read: this one is ours. In `mixed` each part has a normaliser of its own.
  """
  advantage = settings.data_mix.demonstration_advantage

  def update(state: TrainState, batch: StepBatch):
    sft, rl = _tokens(batch.sft), _tokens(batch.rl)
    total = (sft + rl).clip(min=1)
    mix = updates.Mix(sft_weight=advantage * sft / total, rl_weight=rl / total)
    return updates.joint(ingredients, lambda *gradients: mix)(state, batch)

  plan = contract.Plan(rollouts=True, demonstrations=True)
  return contract.Method(
    trains_adapter=False,
    init=lambda base, adapter: contract.new_state(
      ingredients.optimizers, base=base
    ),
    plan=lambda step: plan,
    update=update,
  )


def _tokens(part: TokenBatch) -> jax.Array:
  return jnp.float32((jnp.asarray(part.weights) != 0).sum())
