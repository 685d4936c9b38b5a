"""HPT: each question to RL or SFT, by how often it is solved (2509.04419)."""

import numpy as np

from bilevel_jax import config
from bilevel_jax.methods import contract, updates
from bilevel_jax.rollout import routing


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns hybrid post-training.

  A question whose samples are right more often than `method.hpt.gate` is
  learned from by RL; any other by SFT on its own demonstration. Ours: a
  question without one stays with RL; each question counts the same on either
  route, so that a lone demonstration does not weigh as much as all rollouts.
  """
  options = settings.hpt

  def route(groups: routing.Groups) -> routing.Route:
    scored = groups.scored.sum(axis=1)
    right = (groups.correct & groups.scored).sum(axis=1)
    accuracy = right / np.maximum(scored, 1)
    to_sft = groups.demonstrated & (accuracy <= options.gate)
    advantages, _ = ingredients.advantages(groups.rewards, groups.scored)
    share = to_sft.mean()
    return routing.Route(
      rollouts=np.broadcast_to(~to_sft[:, None], groups.rewards.shape),
      advantages=advantages * np.float32(1 - share),
      demonstrations=to_sft,
      coefficients=np.full(len(to_sft), share),
    )

  mix = updates.Mix(sft_weight=options.sft_weight, rl_weight=1.0)
  return updates.joint_method(ingredients, lambda *gradients: mix)._replace(
    route=route
  )
