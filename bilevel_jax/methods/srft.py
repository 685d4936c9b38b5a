"""SRFT: SFT and RL in one stage, weighed by entropy (arXiv 2506.19767)."""

import jax.numpy as jnp
import numpy as np

from bilevel_jax import config
from bilevel_jax.methods import contract, luffy, updates
from bilevel_jax.objectives import sequences, token_weights
from bilevel_jax.rollout import routing


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns the sum of four terms, coefficients of grad log pi.

      demonstration  0.5 exp(-H)   SFT where the policy is sure
                     A p           RL as a member of its group, unclipped, as
                                   if its writer had had no other choice
      right sample   0.1 exp(+H)   kept from sharpening too soon
      wrong sample   -1

  p is the token's probability and H its sequence's mean entropy. The paper and
  its code disagree on the sign of the first exponent
  (`method.srft.sft_exponent`). Ours: in the two RL terms, samples and
  demonstrations count the same, row by row.
  """
  options = settings.srft
  sign = {"paper": -1.0, "code": 1.0}[options.sft_exponent]

  def route(groups: routing.Groups) -> routing.Route:
    advantages, share = luffy.as_members(
      groups, options.demonstration_reward, ingredients
    )
    share = np.float32(share)
    return routing.Route(
      rollouts=np.ones(groups.rewards.shape, bool),
      advantages=np.where(groups.correct, 1 - share, share - 1),
      demonstrations=groups.demonstrated,
      coefficients=np.ones(len(groups.demonstrated)),
      group_advantages=advantages[:, -1] * share,
    )

  def on_demonstrations(logprobs, entropies, batch):
    entropy = sequences.mean(entropies, batch.weights > 0, batch.segment_ids)
    return options.sft_weight * jnp.exp(
      sign * entropy
    ) + batch.group_advantages * jnp.exp(logprobs)

  def on_rollouts(logprobs, entropies, batch):
    del logprobs
    entropy = sequences.mean(entropies, batch.weights > 0, batch.segment_ids)
    right = options.right_weight * jnp.exp(entropy)
    return batch.advantages * jnp.where(batch.advantages > 0, right, 1.0)

  return updates.joint_method(
    ingredients,
    lambda *gradients: updates.Mix(sft_weight=1.0, rl_weight=1.0),
    objective=ingredients.supervised(
      token_weight=token_weights.one,
      context=on_demonstrations,
      with_entropy=True,
    ),
    rl_objective=ingredients.reinforced(advantages=on_rollouts),
  )._replace(route=route)
