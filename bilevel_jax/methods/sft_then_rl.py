"""Cold start: SFT for a share of the steps, then RL. A strong baseline."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from bilevel_jax import config
from bilevel_jax.bilevel import problem
from bilevel_jax.methods import contract, updates
from bilevel_jax.types import StepBatch, TrainState, Tree


def build(
  settings: config.Method,
  ingredients: contract.Ingredients,
  *,
  objective: problem.Objective | None = None,
  sft_rate: float = 1.0,
  second: Callable[[optax.GradientTransformation], updates.Update]
  | None = None,
) -> contract.Method:
  """Returns the two stages, each with a fresh optimiser and its own schedule.

  The KL of the second stage is to the policy that the first one made, or to
  the one before it (`method.sft_then_rl.reference`).

  Args:
    settings: `sft_then_rl` of it.
    ingredients: what it is made from.
    objective: in place of the problem's SFT loss.
    sft_rate: what the first stage's learning rate is multiplied by.
    second: optimiser -> the second stage's update, in place of RL's.
  """
  options, per_step = settings.sft_then_rl, ingredients.updates_per_step
  sft_updates = per_step * sft_steps(options, ingredients)
  sft_optimizer = ingredients.base_optimizer(
    options.sft_learning_rate, max(sft_updates, 1), sft_rate
  )
  rl_optimizer = ingredients.base_optimizer(
    None, max(ingredients.total_updates - sft_updates, 1)
  )
  supervised = updates.supervised(
    ingredients, objective=objective, optimizer=sft_optimizer
  )
  if second is None:
    reinforced = updates.reinforced(ingredients, optimizer=rl_optimizer)
  else:
    reinforced = second(rl_optimizer)
  keeps = options.reference == "after_sft"
  copy = lambda base: updates.reference_copy(ingredients, base) if keeps else {}

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    del adapter
    return dataclasses.replace(
      contract.new_state({"base": sft_optimizer}, base=base),
      # Not told by the count of updates: one that was skipped is not counted.
      extra={"reinforced": jnp.zeros((), bool), **copy(base)},
    )

  def update(state: TrainState, batch: StepBatch):
    if batch.rl is None:
      state, metrics = supervised(state, batch)
      extra = state.extra | copy(state.base)
      return dataclasses.replace(state, extra=extra), metrics
    begun = state.extra["reinforced"]
    optimizer_state = jax.tree.map(
      lambda fresh, old: jnp.where(begun, old, fresh),
      rl_optimizer.init(state.base),
      state.optimizer_states["base"],
    )
    state = dataclasses.replace(
      state,
      optimizer_states={"base": optimizer_state},
      extra=state.extra | {"reinforced": jnp.ones((), bool)},
    )
    return reinforced(state, batch)

  def plan(step: int) -> contract.Plan:
    first = step * per_step < sft_updates
    return contract.Plan(rollouts=not first, demonstrations=first)

  has_copy = keeps and ingredients.reference_dtype is not None
  return contract.Method(
    trains_adapter=False,
    init=init,
    plan=plan,
    update=update,
    reference=(lambda state: state.extra["reference"]) if has_copy else None,
  )


def sft_steps(
  options: config.comparators.SFTThenRL, ingredients: contract.Ingredients
) -> int:
  """Returns the steps of the first stage."""
  steps = ingredients.total_updates / ingredients.updates_per_step
  return round(options.sft_share * steps)
