"""RL and SFT apart, from the same start; at the end their changes are added."""

import dataclasses

import jax
import jax.numpy as jnp

from bilevel_jax import config
from bilevel_jax.methods import contract, updates
from bilevel_jax.types import StepBatch, TrainState, Tree


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns start + a (after RL - start) + b (after SFT - start).

  RL comes first and SFT takes the steps that are left, from the start again;
  a and b are `method.merge.rl_weight` and `sft_weight`. Until the last step
  is done, what is evaluated is the branch in training. A recipe of arXiv
  2507.07562 by linear task vectors; that both branches are trained in one
  run, on one budget of steps, is ours.
  """
  options, per_step = settings.merge, ingredients.updates_per_step
  total = ingredients.total_updates
  sft_updates = per_step * round(options.sft_share * total / per_step)
  rl_optimizer = ingredients.base_optimizer(None, max(total - sft_updates, 1))
  sft_optimizer = ingredients.base_optimizer(
    options.sft_learning_rate, max(sft_updates, 1)
  )
  reinforced = updates.reinforced(ingredients, optimizer=rl_optimizer)
  supervised = updates.supervised(ingredients, optimizer=sft_optimizer)
  rest = 1 - options.rl_weight - options.sft_weight

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    del adapter
    return dataclasses.replace(
      contract.new_state({"base": rl_optimizer}, base=base),
      # Before SFT the start; then all that is added to b times SFT's branch.
      extra={
        "supervised": jnp.zeros((), bool),
        "kept": jax.tree.map(jnp.copy, base),
      },
    )

  def update(state: TrainState, batch: StepBatch):
    if batch.rl is not None:
      return reinforced(state, batch)
    begun, kept = state.extra["supervised"], state.extra["kept"]
    choose = lambda old, new: jax.tree.map(
      lambda x, y: jnp.where(begun, x, y), old, new
    )
    partly = jax.tree.map(
      lambda rl, start: options.rl_weight * rl + rest * start, state.base, kept
    )
    return supervised(
      dataclasses.replace(
        state,
        base=choose(state.base, kept),
        optimizer_states={
          "base": choose(
            state.optimizer_states["base"], sft_optimizer.init(kept)
          )
        },
        extra={
          "supervised": jnp.ones((), bool),
          "kept": choose(kept, partly),
        },
      ),
      batch,
    )

  def finish(state: TrainState) -> TrainState:
    begun = state.extra["supervised"]

    def merged(base, kept):
      without_sft = options.rl_weight * base + (1 - options.rl_weight) * kept
      return jnp.where(begun, options.sft_weight * base + kept, without_sft)

    base = jax.tree.map(merged, state.base, state.extra["kept"])
    return dataclasses.replace(state, base=base)

  def plan(step: int) -> contract.Plan:
    first = step * per_step < total - sft_updates
    return contract.Plan(rollouts=first, demonstrations=not first)

  return contract.Method(
    trains_adapter=False, init=init, plan=plan, update=update, finish=finish
  )
