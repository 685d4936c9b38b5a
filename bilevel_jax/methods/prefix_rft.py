"""Prefix-RFT: one sample of a group goes on from a demonstration (2507.01679).

The last of a question's G samples begins with the first floor(l |y*|) tokens
of its demonstration, l uniform between `low` and `longest`, and `low` falls
along a cosine from `longest` to `lowest` over the run: first nearly the whole
demonstration is given, in the end any part of it. Given tokens have the
advantage of the completion that they began, under the same ratio and clip, if
they are among the most uncertain `top_share` of them.
"""

import dataclasses
import math

import numpy as np

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, routing, updates
from bilevel_jax.objectives import prefix_losses
from bilevel_jax.rollout import rounds


@dataclasses.dataclass(frozen=True)
class Options:
  longest: float = setting(
    0.95,
    "largest share of a demonstration that is given",
    at_least=0,
    at_most=1,
  )
  lowest: float = setting(
    0.0,
    "smallest share of a demonstration that is given, at the end of the run",
    at_least=0,
    at_most=1,
  )
  top_share: float = setting(
    0.2,
    "share of the given tokens that is learned from, the most uncertain",
    at_least=0,
    at_most=1,
  )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns GRPO with a guided sample in each group.

  Its baseline is the mean of the others, as the code has it for the given
  tokens; theirs is their own. Ours: what the sample goes on with has the same
  advantage, where the code makes that a group of its own, with the advantage r
  (0 in the paper's second version), so that a wrong end of a good beginning
  is not unlearned; and its scale is that of the whole group, where
  `rl.advantage` has one.
  """
  steps = setup.steps

  def guide(progress: rounds.Progress) -> np.ndarray:
    low = lowest_share(options, progress.step, steps)
    random = np.random.default_rng(progress.seed)
    shares = random.uniform(low, options.longest, len(progress.solutions))
    given = np.zeros((len(shares), progress.samples), int)
    given[:, -1] = np.floor(shares * progress.solutions)
    return given

  def route(groups: contract.Groups, host: contract.Host) -> routing.Route:
    advantages = advantages_of(groups, setup.advantages)
    return routing.Route(advantages, prefixes=groups.prefix_lengths > 0)

  loss = prefix_losses.policy_gradient(options.top_share)
  return updates.rl_method(
    setup,
    objective=setup.rl_loss(prefix_loss=loss),
    batches=routing.routed(route, guide),
    needs=contract.Needs(demonstrations="prefix"),
  )


def lowest_share(options: Options, step: int, steps: int) -> float:
  """Returns `low` at a step: lowest + (longest - lowest) (1 + cos(pi t)) / 2.

  Args:
    steps: of the run; t is from 0 at the first to 1 at the last.
  """
  done = math.pi * step / max(steps - 1, 1)
  fall = (1 + math.cos(done)) / 2
  return options.lowest + (options.longest - options.lowest) * fall


def advantages_of(
  groups: contract.Groups,
  rule: contract.Advantages,
) -> np.ndarray:
  """Returns [P, G]: guided samples against the mean of the unguided ones.

  r - mean of the n - 1 others is n / (n - 1) times r - mean of all n.

  Args:
    rule: what the advantages of a whole group are.
  """
  guided = groups.prefix_lengths > 0
  unguided = groups.scored & ~guided
  advantages, _ = rule(groups.rewards, unguided, groups.lengths)
  for column in np.flatnonzero(guided.any(axis=0)):
    among = unguided.copy()
    among[:, column] = groups.scored[:, column]
    own = rule(groups.rewards, among, groups.lengths)[0][:, column]
    count = among.sum(axis=1)
    own = own * count / np.maximum(count - 1, 1)
    of = guided[:, column] & groups.scored[:, column]
    advantages[of, column] = own[of]
  return advantages
