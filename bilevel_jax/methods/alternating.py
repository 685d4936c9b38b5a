"""The paper's baseline of alternation: steps of RL, then steps of SFT."""

from bilevel_jax import config
from bilevel_jax.methods import contract, updates


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns RL and SFT in turns, each with its own optimiser and its state."""
  options, total = settings.alternating, ingredients.total_updates
  round_steps = options.rl_steps + options.sft_steps
  init, update = updates.by_turns(
    ingredients,
    rl_optimizer=ingredients.base_optimizer(
      None, max(total * options.rl_steps // round_steps, 1)
    ),
    sft_optimizer=ingredients.base_optimizer(
      options.sft_learning_rate,
      max(total * options.sft_steps // round_steps, 1),
    ),
  )

  def plan(step: int) -> contract.Plan:
    reinforces = step % round_steps < options.rl_steps
    return contract.Plan(rollouts=reinforces, demonstrations=not reinforces)

  return contract.Method(
    trains_adapter=False, init=init, plan=plan, update=update
  )
