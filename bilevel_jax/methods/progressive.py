"""From imitation to RL: samples begin with less and less of a demonstration."""

import numpy as np

from bilevel_jax import config
from bilevel_jax.methods import contract, grpo, trapo, updates
from bilevel_jax.objectives import prefix_losses, token_weights
from bilevel_jax.rollout import rounds, routing


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns RL on what follows a beginning, and SFT on the beginning.

  All samples of a question begin with the same share of its demonstration: all
  of it at first, which is SFT, and linearly less, until after `guided_share` of
  the steps there is nothing but RL. One of a question's samples counts for
  their beginning. A recipe of arXiv 2507.07562, whose definition could not be
  read: this one is ours. `uft` has hints at random, and a trace of SFT on them.
  """
  options = settings.progressive
  steps = ingredients.total_updates // ingredients.updates_per_step

  def route(groups: routing.Groups) -> routing.Route:
    advantages, _ = ingredients.advantages(groups.rewards, groups.scored)
    once = trapo.last_of_alike(groups.given)
    return routing.of_rollouts(advantages, prefixes=once)

  loss = prefix_losses.likelihood(token_weights.one, options.sft_weight)
  return grpo.build(settings, ingredients)._replace(
    update=updates.reinforced(
      ingredients, objective=ingredients.reinforced(prefix_loss=loss)
    ),
    guide=beginnings(options.guided_share * steps),
    route=route,
    every_rollout=True,
  )


def beginnings(steps: float) -> rounds.Guide:
  """Returns the guide that gives 1 - step / steps of the demonstration.

  Args:
    steps: after which nothing is given.
  """

  def guide(progress: rounds.Progress) -> np.ndarray:
    share = max(0.0, 1 - progress.step / steps) if steps else 0.0
    tokens = np.floor(share * progress.solutions).astype(int)
    return np.repeat(tokens[:, None], progress.samples, axis=1)

  return guide
