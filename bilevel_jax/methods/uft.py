"""UFT: RL from hints that shrink, with a trace of SFT on them (2505.16984).

A question's samples all begin with the same hint, a beginning of its
demonstration: k of `pieces` pieces, k binomial with the probability

    p = lowest + (highest - lowest) (1 + cos(pi step / T)) / 2

until step T, `hinted_share` of the run, and no hint after it. The loss is
GRPO's on what was drawn and `hint_weight` times -log p on the hint.
"""

import math

import numpy as np

from bilevel_jax import config
from bilevel_jax.methods import contract, grpo, updates
from bilevel_jax.objectives import prefix_losses, token_weights
from bilevel_jax.rollout import rounds, routing


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns unified fine-tuning.

  Ours: pieces are of equal tokens, and there is one more of them, with the
  answer, that is never given; a hint is part of the completion, so its tokens
  weigh like the others, and once for each sample that began with it.
  """
  options = settings.uft
  steps = ingredients.total_updates // ingredients.updates_per_step

  def route(groups: routing.Groups) -> routing.Route:
    advantages, _ = ingredients.advantages(groups.rewards, groups.scored)
    return routing.of_rollouts(advantages, prefixes=groups.given > 0)

  loss = prefix_losses.likelihood(token_weights.one, options.hint_weight)
  return grpo.build(settings, ingredients)._replace(
    update=updates.reinforced(
      ingredients, objective=ingredients.reinforced(prefix_loss=loss)
    ),
    guide=hints(options, steps),
    route=route,
    every_rollout=True,
  )


def hints(options: config.comparators.UFT, steps: int) -> rounds.Guide:
  """Returns the guide that gives all samples of a question the same hint.

  Args:
    options: the schedule.
    steps: of the run.
  """

  def guide(progress: rounds.Progress) -> np.ndarray:
    random = np.random.default_rng(progress.seed)
    solutions = progress.solutions
    given = random.binomial(
      options.pieces, probability(options, progress.step, steps), len(solutions)
    )
    tokens = solutions * given // (options.pieces + 1)
    return np.repeat(tokens[:, None], progress.samples, axis=1)

  return guide


def probability(
  options: config.comparators.UFT, step: int, steps: int
) -> float:
  """Returns the probability that a piece is given at a step.

  Args:
    options: the schedule.
    step: steps done before.
    steps: of the run.
  """
  until = options.hinted_share * steps
  if step >= until:
    return 0.0
  fall = (1 + math.cos(math.pi * step / until)) / 2
  return options.lowest + (options.highest - options.lowest) * fall
