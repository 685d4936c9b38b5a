"""LUFFY: demonstrations as members of their groups (arXiv 2504.14945)."""

import dataclasses
from typing import NamedTuple

import numpy as np

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, routing, updates
from bilevel_jax.objectives import token_weights


@dataclasses.dataclass(frozen=True)
class Options:
  gamma: float = setting(
    0.1, "probability at which a demonstration's token weighs most", above=0
  )
  demonstration_reward: float = setting(1.0, "reward of a demonstration")


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns off-policy guidance by a demonstration in each group.

  The G samples of a question and its demonstration, with the reward
  `method.luffy.demonstration_reward`, share one baseline. On a token of the
  demonstration, with its advantage A and its probability p, the loss is
  -A p / (p + gamma), the coefficient of grad log p A gamma p / (p + gamma)^2.
  A demonstration's tokens weigh what a sample's do (`as_members`). Ours: the
  samples keep the clip that `rl.*` says, and the demonstration comes on top of
  them, where the paper has 7 samples and 1 demonstration and no clip.
  """

  def route(groups: contract.Groups, host: contract.Host) -> routing.Route:
    members = as_members(groups, options.demonstration_reward, setup)
    return routing.Route(
      advantages=members.advantages[:, :-1] * members.rl_factor,
      demonstrations=groups.demonstrated,
      coefficients=members.advantages[:, -1] * members.sft_factor,
    )

  method = updates.joint(
    setup,
    lambda found: updates.Mix(sft_weight=1.0, rl_weight=1.0),
    objective=setup.sft_loss(token_weight=token_weights.shaped(options.gamma)),
  )
  return routing.on_own_demonstrations(method, route)


class Members(NamedTuple):
  """Samples and demonstrations as members of one group."""

  advantages: np.ndarray
  """[P, G + 1], one baseline for both; the demonstration's is the last."""
  rl_factor: np.float32
  """What the RL loss is multiplied by, for one normaliser of both."""
  sft_factor: np.float32
  """The same of the demonstrations' loss."""


def as_members(
  groups: contract.Groups, reward: float, setup: contract.Setup
) -> Members:
  """Returns what makes a demonstration one more sample of its question.

  `rl.weighting` weighs its tokens as those of a sample, over the whole step.

  Args:
    reward: what a demonstration is rewarded with.
  """
  lengths = np.array(
    [len(d.solution) if d else 0 for d in groups.demonstrations]
  )
  own = np.full(len(lengths), reward), groups.demonstrated, lengths
  advantages, _ = setup.advantages(
    *map(np.column_stack, zip(groups.outcomes, own, strict=True))
  )
  factors = setup.as_one_batch(
    groups.lengths.ravel(), lengths[groups.demonstrated]
  )
  return Members(advantages, *map(np.float32, factors))
