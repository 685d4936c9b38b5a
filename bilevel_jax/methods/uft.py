"""UFT: RL from hints that shrink, with a trace of SFT on them (2505.16984).

A question's samples all begin with the same hint, a beginning of its
demonstration: k of `pieces` pieces, k binomial with the probability

    p = lowest + (highest - lowest) (1 + cos(pi step / T)) / 2

until step T, `hinted_share` of the run, and no hint after it. The loss is
GRPO's on what was sampled and `hint_weight` times -log p on the hint.
"""

import dataclasses
import math

import numpy as np

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, routing
from bilevel_jax.objectives import prefix_losses, token_weights
from bilevel_jax.rollout import rounds


@dataclasses.dataclass(frozen=True)
class Options:
  pieces: int = setting(5, "most pieces that a hint may have", at_least=1)
  highest: float = setting(
    0.95,
    "probability that a piece is given, at the start",
    at_least=0,
    at_most=1,
  )
  lowest: float = setting(
    0.05,
    "probability that a piece is given, when hints end",
    at_least=0,
    at_most=1,
  )
  hinted_share: float = setting(
    0.6, "share of the steps that have hints", at_least=0, at_most=1
  )
  hint_weight: float = setting(
    1e-3,
    "weight of -log p on a hint's tokens; that of the RL loss is 1",
    at_least=0,
  )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns unified fine-tuning.

  Ours: pieces are of equal tokens, and there is one more of them, with the
  answer, that is never given. As in the code, `rl.weighting` weighs what was
  sampled and what was given each by itself, the latter once for each sample
  that began with it.
  """
  loss = prefix_losses.likelihood(token_weights.one, options.hint_weight)
  return routing.guided(
    setup, hints(options, setup.steps), loss, given_apart=True
  )


def hints(options: Options, steps: int) -> rounds.Guide:
  """Returns the guide that gives all samples of a question the same hint."""

  def guide(progress: rounds.Progress) -> np.ndarray:
    random = np.random.default_rng(progress.seed)
    solutions = progress.solutions
    given = random.binomial(
      options.pieces, probability(options, progress.step, steps), len(solutions)
    )
    tokens = solutions * given // (options.pieces + 1)
    return np.repeat(tokens[:, None], progress.samples, axis=1)

  return guide


def probability(options: Options, step: int, steps: int) -> float:
  """Returns the probability that a piece is given at a step."""
  until = options.hinted_share * steps
  if step >= until:
    return 0.0
  fall = (1 + math.cos(math.pi * step / until)) / 2
  return options.lowest + (options.highest - options.lowest) * fall
