"""From imitation to RL: samples begin with less and less of a demonstration."""

import dataclasses

import numpy as np

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, routing, trapo
from bilevel_jax.objectives import prefix_losses, token_weights
from bilevel_jax.rollout import rounds


@dataclasses.dataclass(frozen=True)
class Options:
  guided_share: float = setting(
    0.5,
    "share of the steps whose samples begin with a part of a demonstration",
    at_least=0,
    at_most=1,
  )
  sft_weight: float = setting(
    1.0,
    "weight of -log p on the part of a demonstration that a sample begins "
    "with; that of the RL loss is 1",
    at_least=0,
  )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns RL on what follows a beginning, and SFT on the beginning.

  All samples of a question begin with the same share of its demonstration: all
  of it at first, which is SFT, and linearly less, until after `guided_share` of
  the steps there is nothing but RL. One of a question's samples counts for
  their beginning. A recipe of arXiv 2507.07562, whose definition could not be
  read: this one is ours. `uft` has hints at random, and a trace of SFT on them.
  """
  loss = prefix_losses.likelihood(token_weights.one, options.sft_weight)
  return routing.guided(
    setup,
    beginnings(options.guided_share * setup.steps),
    loss,
    trapo.last_of_alike,
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
