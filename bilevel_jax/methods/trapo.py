"""TRAPO: more of the demonstration where less fails, learned from within a
trust region (arXiv 2512.17636).

A question's samples are sampled in micro-groups. Each but the first begins with
its share of the demonstration if the mean reward of all before it is below its
threshold, else with nothing. On a given token of probability p the gradient is
min(1, p / a) grad log p; the rest is GRPO over the whole group.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, routing
from bilevel_jax.objectives import prefix_losses, token_weights
from bilevel_jax.rollout import rounds


@dataclasses.dataclass(frozen=True)
class Options:
  sizes: tuple[int, ...] = setting(
    (4, 2, 1, 1), "samples of each micro-group, or their ratio"
  )
  shares: tuple[float, ...] = setting(
    (0.0, 0.2, 0.5, 1.0),
    "share of the demonstration that each micro-group is given",
  )
  thresholds: tuple[float, ...] = setting(
    (-1.0, 0.5, 0.7, 0.9),
    "mean reward of the samples before a micro-group below which it is given "
    "its share",
  )
  bound: float = setting(
    0.1,
    "a: probability below which a given token weighs p / a",
    above=0,
    at_most=1,
  )


def rules(options: Options, settings: Any) -> Iterator[str]:
  """Yields a sentence for each rule that the settings break."""
  counts = [
    len(options.sizes), len(options.shares), len(options.thresholds)
  ]  # fmt: skip
  if len(set(counts)) > 1:
    yield (
      "method.trapo.sizes, shares and thresholds must have one for each "
      f"micro-group, got {', '.join(map(str, counts))}"
    )
  if min(options.sizes, default=0) < 1:
    yield f"method.trapo.sizes must be at least 1 each, got {options.sizes}"


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns TRAPO, with the paper's thresholds.

  The code helps below 2 right of 4, 4 of 6 and 7 of 7: with rewards of 0 and
  1, `thresholds` (-1, 0.5, 0.66, 1). As in the code, one of several samples
  with the same beginning counts for it. Ours: the cut is at the share itself,
  not moved to the next blank line; `rl.*` says whether there is a clip.
  """
  loss = prefix_losses.likelihood(token_weights.trust_region(options.bound))
  return routing.guided(setup, micro_groups(options), loss, last_of_alike)


def micro_groups(options: Options) -> rounds.Guide:
  """Returns the guide that helps where samples before failed."""
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
