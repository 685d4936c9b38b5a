"""Shuffle-R1: RL on the rollouts with the most to say (arXiv 2508.05612).

Of each question's G samples, sorted by advantage, the first is paired with the
last, the second with the last but one, and so on; the most contrasting share
of the pairs is kept. Then the step's pairs are sampled in rounds, in each
without replacement and with a probability that grows with |A1| + |A2|, so many
in all as there are pairs.
"""

import dataclasses

import numpy as np

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, routing, updates


@dataclasses.dataclass(frozen=True)
class Options:
  kept_share: float = setting(
    0.5,
    "share of a question's pairs of samples that is kept",
    at_least=0,
    at_most=1,
  )
  rounds: int = setting(8, "rounds in which the pairs are sampled", at_least=1)
  power: float = setting(
    1.0,
    "power of a pair's advantages that its chance to be sampled grows with",
    at_least=0,
  )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns GRPO on the pairs that were sampled.

  Ours: a sample that was sampled c times is a row with c times the advantage,
  which is the same mean over rows, in fixed shapes; its KL term counts once.
  """

  def route(groups: contract.Groups, host: contract.Host) -> routing.Route:
    advantages, _ = setup.advantages(*groups.outcomes)
    pairs = contrasting(advantages, share=options.kept_share)
    sizes = np.abs(advantages.ravel()[pairs]).sum(axis=1)
    sampled = draw(
      sizes, rounds=options.rounds, power=options.power, random=host.random()
    )
    counts = np.zeros(advantages.size)
    counts[pairs] = sampled[:, None]
    # A pair may have a member that could not be scored: it is no row.
    counts = counts.reshape(advantages.shape) * groups.scored
    mean = counts.sum() / max((counts > 0).sum(), 1)
    by_count = (advantages * counts / max(mean, 1)).astype(np.float32)
    return routing.Route(by_count, rollouts=counts > 0)

  return updates.rl_method(setup, batches=routing.routed(route))


def contrasting(advantages: np.ndarray, *, share: float) -> np.ndarray:
  """Returns [K, 2] indices of the pairs that are kept, into N = P * G.

  Args:
    advantages: [P, G]; of an odd G the middle one has no partner.
    share: of each question's pairs; one at least, if there is one.
  """
  questions, samples = advantages.shape
  kept = min(max(round(share * (samples // 2)), 1), samples // 2)
  order = np.argsort(-advantages, axis=1, kind="stable")
  pairs = np.stack([order[:, :kept], order[:, ::-1][:, :kept]], axis=-1)
  first = samples * np.arange(questions)[:, None, None]
  return (pairs + first).reshape(-1, 2)


def draw(
  sizes: np.ndarray, *, rounds: int, power: float, random: np.random.Generator
) -> np.ndarray:
  """Returns [K] int, how often each pair is sampled.

  Args:
    sizes: [K] of |A1| + |A2|.
    rounds: of K / rounds pairs each, K in all, none twice in a round.
    power: a pair's chance is proportional to its size to this power.
  """
  chances = sizes.astype(np.float64) ** power + 1e-12  # all may be equal
  sampled = [
    random.choice(
      len(sizes), len(each), replace=False, p=chances / chances.sum()
    )
    for each in np.array_split(sizes, rounds)
  ]
  return np.bincount(np.concatenate(sampled), minlength=len(sizes))
