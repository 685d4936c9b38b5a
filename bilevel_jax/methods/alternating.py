"""The paper's baseline of alternation: steps of RL, then steps of SFT."""

import dataclasses

from bilevel_jax import config
from bilevel_jax.methods import contract, updates
from bilevel_jax.types import StepBatch, TrainState, Tree


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns RL and SFT in turns, each with its own optimiser and its state."""
  options, total = settings.alternating, ingredients.total_updates
  round_steps = options.rl_steps + options.sft_steps
  rl_optimizer = ingredients.base_optimizer(
    None, max(total * options.rl_steps // round_steps, 1)
  )
  sft_optimizer = ingredients.base_optimizer(
    options.sft_learning_rate, max(total * options.sft_steps // round_steps, 1)
  )
  reinforced = updates.reinforced(ingredients, optimizer=rl_optimizer)
  supervised = updates.supervised(ingredients, optimizer=sft_optimizer)

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    del adapter
    return dataclasses.replace(
      contract.new_state({"base": rl_optimizer}, base=base),
      extra={"idle": sft_optimizer.init(base)},
    )

  def update(state: TrainState, batch: StepBatch):
    if batch.rl is not None:
      return reinforced(state, batch)
    state, metrics = supervised(_swapped(state), batch)
    return _swapped(state), metrics

  def plan(step: int) -> contract.Plan:
    reinforces = step % round_steps < options.rl_steps
    return contract.Plan(rollouts=reinforces, demonstrations=not reinforces)

  return contract.Method(
    trains_adapter=False, init=init, plan=plan, update=update
  )


def _swapped(state: TrainState) -> TrainState:
  """Returns the state with the idle optimiser's state in the other's place."""
  return dataclasses.replace(
    state,
    optimizer_states={"base": state.extra["idle"]},
    extra={"idle": state.optimizer_states["base"]},
  )
