"""In each step an update of RL, then one of SFT on what RL cannot solve."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax import config
from bilevel_jax.methods import contract, diagnostics, updates
from bilevel_jax.rollout import routing
from bilevel_jax.types import StepBatch, TrainState


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns RL on all of a step's rollouts, then SFT on its unsolved questions.

  Each has its own optimiser; SFT learns from the demonstrations of questions
  of which no sample was right, and where there is none it does nothing. One
  of the recipes of arXiv 2507.07562, whose definition could not be read: this
  one is ours.
  """
  total = ingredients.total_updates
  init, turn = updates.by_turns(
    ingredients,
    rl_optimizer=ingredients.base_optimizer(None, total),
    sft_optimizer=ingredients.base_optimizer(
      settings.interleaved.sft_learning_rate, total
    ),
  )

  def route(groups: routing.Groups) -> routing.Route:
    advantages, _ = ingredients.advantages(groups.rewards, groups.scored)
    solved = np.any(groups.correct & groups.scored, axis=1)
    return routing.Route(
      rollouts=np.ones(groups.rewards.shape, bool),
      advantages=advantages,
      demonstrations=groups.demonstrated & ~solved,
      coefficients=np.ones(solved.shape),
    )

  def update(state: TrainState, batch: StepBatch):
    after_rl, metrics = turn(state, batch)
    after_sft, sft_metrics = turn(after_rl, dataclasses.replace(batch, rl=None))
    # An optimiser with momentum moves even where there is nothing to learn.
    learns = jnp.any(jnp.asarray(batch.sft.weights) != 0)
    state = jax.tree.map(
      lambda new, old: jnp.where(learns, new, old),
      after_sft,
      after_rl,
    )
    norms = {
      "sft/gradient_norm": sft_metrics["optimizer/base_gradient_norm"],
      "rl/gradient_norm": metrics["optimizer/base_gradient_norm"],
    }
    return dataclasses.replace(state, updates=after_rl.updates), {
      **metrics,
      **norms,
      "sft/loss": sft_metrics["sft/loss"],
      "mix/sft_share": diagnostics.sft_share(*norms.values()),
    }

  plan = contract.Plan(rollouts=True, demonstrations=True)
  return contract.Method(
    trains_adapter=False,
    init=init,
    plan=lambda step: plan,
    update=update,
    route=route,
  )
