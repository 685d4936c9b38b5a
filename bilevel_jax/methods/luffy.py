"""LUFFY: demonstrations as members of their groups (arXiv 2504.14945)."""

import dataclasses

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
  A row counts the same in either part. Ours: the samples keep the clip that
  `rl.*` says, and the demonstration comes on top of them, where the paper has
  7 samples and 1 demonstration and no clip.
  """

  def route(groups: contract.Groups, host: contract.Host) -> routing.Route:
    advantages, share = as_members(groups, options.demonstration_reward, setup)
    return routing.Route(
      advantages=advantages[:, :-1] * np.float32(1 - share),
      demonstrations=groups.demonstrated,
      coefficients=advantages[:, -1] * share,
    )

  method = updates.joint(
    setup,
    lambda found: updates.Mix(sft_weight=1.0, rl_weight=1.0),
    objective=setup.sft_loss(token_weight=token_weights.shaped(options.gamma)),
  )
  return routing.on_own_demonstrations(method, route)


def as_members(
  groups: contract.Groups, reward: float, setup: contract.Setup
) -> tuple[np.ndarray, np.floating]:
  """Returns advantages of samples and demonstrations, one baseline for both.

  Returns:
    [P, G + 1], the demonstration's last; and the demonstrations' share of the
    rows that count.
  """
  last = np.full((len(groups.rewards), 1), reward)
  advantages, _ = setup.advantages(
    np.concatenate([groups.rewards, last], axis=1),
    np.concatenate([groups.scored, groups.demonstrated[:, None]], axis=1),
  )
  rows = groups.scored.sum(), groups.demonstrated.sum()
  return advantages, rows[1] / max(sum(rows), 1)
