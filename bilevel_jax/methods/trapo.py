"""TRAPO: more of the demonstration where less fails, learned from within a
trust region (arXiv 2512.17636).

A question's samples are drawn in micro-groups. Each but the first begins with
its share of the demonstration if the mean reward of all before it is below its
threshold, else with nothing. On a given token of probability p the gradient is
min(1, p / a) grad log p; the rest is GRPO over the whole group.
"""

import numpy as np

from bilevel_jax import config
from bilevel_jax.methods import contract, grpo, updates
from bilevel_jax.objectives import prefix_losses, token_weights
from bilevel_jax.rollout import rounds, routing


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns TRAPO, with the paper's thresholds.

  The code helps below 2 right of 4, 4 of 6 and 7 of 7: with rewards of 0 and
  1, `thresholds` (-1, 0.5, 0.66, 1). As in the code, one of several samples
  with the same beginning counts for it. Ours: the cut is at the share itself,
  not moved to the next blank line; `rl.*` says whether there is a clip.

  Raises:
    ConfigError: micro-groups that differ in number from shares or thresholds,
      or have no sample.
  """
  options = settings.trapo
  counts = [
    len(options.sizes), len(options.shares), len(options.thresholds)
  ]  # fmt: skip
  if len(set(counts)) > 1:
    raise config.ConfigError(
      "method.trapo.sizes, shares and thresholds must have one for each "
      f"micro-group, got {', '.join(map(str, counts))}"
    )
  if min(options.sizes, default=0) < 1:
    raise config.ConfigError(
      f"method.trapo.sizes must be at least 1 each, got {options.sizes}"
    )

  def route(groups: routing.Groups) -> routing.Route:
    advantages, _ = ingredients.advantages(groups.rewards, groups.scored)
    return routing.of_rollouts(advantages, prefixes=last_of_alike(groups.given))

  loss = prefix_losses.likelihood(token_weights.trust_region(options.bound))
  return grpo.build(settings, ingredients)._replace(
    update=updates.reinforced(
      ingredients, objective=ingredients.reinforced(prefix_loss=loss)
    ),
    guide=micro_groups(options),
    route=route,
    every_rollout=True,
  )


def micro_groups(options: config.comparators.TRAPO) -> rounds.Guide:
  """Returns the guide that helps where samples before failed.

  Args:
    options: sizes, shares and thresholds.
  """
  shares, thresholds = np.array(options.shares), np.array(options.thresholds)

  def guide(progress: rounds.Progress) -> np.ndarray:
    ends = np.cumsum(options.sizes) / sum(options.sizes) * progress.samples
    ends = np.round(ends).astype(int)  # of a G that is not their sum, in ratio
    first = progress.rewards.shape[1]
    group = int(np.searchsorted(ends, first, side="right"))
    counted = progress.scored.sum(axis=1)
    total = np.where(progress.scored, progress.rewards, 0).sum(axis=1)
    failed = total < thresholds[group] * counted
    given = np.floor(shares[group] * progress.solutions) * failed
    return np.repeat(given.astype(int)[:, None], ends[group] - first, axis=1)

  return guide


def last_of_alike(given: np.ndarray) -> np.ndarray:
  """Returns [P, G] bool: guided, and no later sample begins with as much.

  Args:
    given: [P, G] int, tokens that each sample began with.
  """
  samples = np.arange(given.shape[1])
  alike = given[:, :, None] == given[:, None, :]
  later = alike & (samples[None, :] > samples[:, None])
  return (given > 0) & ~later.any(axis=2)
