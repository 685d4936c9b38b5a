"""SRFT: SFT and RL in one stage, weighed by entropy (arXiv 2506.19767)."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, luffy, routing, updates
from bilevel_jax.objectives import sequences, token_weights


@dataclasses.dataclass(frozen=True)
class Options:
  sft_weight: float = setting(
    0.5,
    "weight of a demonstration's SFT term, beside the one by its entropy",
    at_least=0,
  )
  sft_exponent: Literal["paper", "code"] = setting(
    "paper",
    "weight of that term by the entropy H: exp(-H), or exp(+H) as in the "
    "official code",
  )
  right_weight: float = setting(
    0.1,
    "weight of a right sample, beside exp(+H); a wrong one has -1",
    at_least=0,
  )
  demonstration_reward: float = setting(1.0, "reward of a demonstration")


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns the sum of four terms, coefficients of grad log pi.

      demonstration  0.5 exp(-H)   SFT where the policy is sure
                     A p           RL as a member of its group, unclipped, as
                                   if its writer had had no other choice
      right sample   0.1 exp(+H)   kept from sharpening too soon
      wrong sample   -1

  p is the token's probability and H its sequence's mean entropy. The paper and
  its code disagree on the sign of the first exponent
  (`method.srft.sft_exponent`). In its RL term a demonstration's token weighs
  what a sample's does (`luffy.as_members`); the SFT term is weighted by
  `sft.weighting` alone.
  """
  sign = {"paper": -1.0, "code": 1.0}[options.sft_exponent]

  def route(groups: contract.Groups, host: contract.Host) -> routing.Route:
    members = luffy.as_members(groups, options.demonstration_reward, setup)
    return routing.Route(
      advantages=np.where(groups.correct, 1, -1) * members.rl_factor,
      demonstrations=groups.demonstrated,
      group_advantages=members.advantages[:, -1] * members.sft_factor,
    )

  def on_demonstrations(logprobs, entropies, batch):
    entropy = sequences.mean(entropies, batch.weights > 0, batch.segment_ids)
    return options.sft_weight * jnp.exp(
      sign * entropy
    ) + batch.group_advantages * jnp.exp(logprobs)

  def on_rollouts(logprobs, entropies, batch):
    entropy = sequences.mean(entropies, batch.weights > 0, batch.segment_ids)
    right = options.right_weight * jnp.exp(entropy)
    return batch.advantages * jnp.where(batch.advantages > 0, right, 1.0)

  method = updates.joint(
    setup,
    lambda found: updates.Mix(sft_weight=1.0, rl_weight=1.0),
    objective=setup.sft_loss(
      token_weight=token_weights.one,
      context=on_demonstrations,
      with_entropy=True,
    ),
    rl_objective=setup.rl_loss(advantages=on_rollouts),
  )
  return routing.on_own_demonstrations(method, route)
