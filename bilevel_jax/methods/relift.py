"""ReLIFT: RL, and SFT on what no sample solved (arXiv 2506.07527).

Every step is of RL. A question that all samples failed puts its demonstration
into a buffer, first in, first out; when that holds `buffer` of them, the step
ends with an update of SFT on the oldest, with an optimiser of its own.
"""

from bilevel_jax import config
from bilevel_jax.methods import contract, updates
from bilevel_jax.rollout import routing


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns RL interleaved with SFT on the hardest questions.

  Ours: no entropy bonus (0.001 in the code); at most one update of SFT a step,
  the rest waits; a question without a demonstration is left to RL.
  """
  options, total = settings.relift, ingredients.total_updates
  init, update = updates.by_turns(
    ingredients,
    rl_optimizer=ingredients.base_optimizer(None, total),
    sft_optimizer=ingredients.base_optimizer(options.sft_learning_rate, total),
  )

  def route(groups: routing.Groups) -> routing.Route:
    advantages, _ = ingredients.advantages(groups.rewards, groups.scored)
    failed = ~(groups.correct & groups.scored).any(axis=1)
    # What could not be judged did not fail.
    held_back = failed & groups.scored.any(axis=1) & groups.demonstrated
    return routing.of_rollouts(advantages, held_back=held_back)

  return contract.Method(
    trains_adapter=False,
    init=init,
    plan=lambda step: contract.Plan(rollouts=True, demonstrations=False),
    update=update,
    route=route,
    buffer=options.buffer,
  )
