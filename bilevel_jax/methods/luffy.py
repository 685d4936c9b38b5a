"""LUFFY: demonstrations as members of their groups (arXiv 2504.14945)."""

import numpy as np

from bilevel_jax import config
from bilevel_jax.methods import contract, updates
from bilevel_jax.objectives import token_weights
from bilevel_jax.rollout import routing


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns off-policy guidance by a demonstration in each group.

  The G samples of a question and its demonstration, with the reward
  `method.luffy.demonstration_reward`, share one baseline. On a token of the
  demonstration, with its advantage A and its probability p, the loss is
  -A p / (p + gamma), the coefficient of grad log p A gamma p / (p + gamma)^2.
  A row counts the same in either part. Ours: the samples keep the clip that
  `rl.*` says, and the demonstration comes on top of them, where the paper has
  7 samples and 1 demonstration and no clip.
  """
  options = settings.luffy

  def route(groups: routing.Groups) -> routing.Route:
    advantages, share = as_members(
      groups, options.demonstration_reward, ingredients
    )
    return routing.Route(
      rollouts=np.ones(groups.rewards.shape, bool),
      advantages=advantages[:, :-1] * np.float32(1 - share),
      demonstrations=groups.demonstrated,
      coefficients=advantages[:, -1] * share,
    )

  return updates.joint_method(
    ingredients,
    lambda *gradients: updates.Mix(sft_weight=1.0, rl_weight=1.0),
    objective=ingredients.supervised(
      token_weight=token_weights.shaped(options.gamma)
    ),
  )._replace(route=route)


def as_members(
  groups: routing.Groups, reward: float, ingredients: contract.Ingredients
) -> tuple[np.ndarray, np.floating]:
  """Returns advantages of samples and demonstrations, one baseline for both.

  Args:
    groups: the step's questions with their samples.
    reward: of a demonstration.
    ingredients: for the rule.

  Returns:
    [P, G + 1], the demonstration's last; and the demonstrations' share of the
    rows that count.
  """
  last = np.full((len(groups.rewards), 1), reward)
  advantages, _ = ingredients.advantages(
    np.concatenate([groups.rewards, last], axis=1),
    np.concatenate([groups.scored, groups.demonstrated[:, None]], axis=1),
  )
  rows = groups.scored.sum(), groups.demonstrated.sum()
  return advantages, rows[1] / max(sum(rows), 1)
