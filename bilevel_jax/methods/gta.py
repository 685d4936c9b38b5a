"""GTA: SFT where it does not oppose RL (guess, think, answer; 2509.12108).

A completion is a guess, a thought and an answer. SFT learns to guess from the
label, RL to think and answer, and never the guess; of two gradients that point
apart, RL's alone is taken.
"""

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, updates
from bilevel_jax.rollout import endings
from bilevel_jax.types import StepBatch


@dataclasses.dataclass(frozen=True)
class Options:
  sft_weight: float = setting(
    1.0, "weight of an SFT gradient that does not oppose RL's", at_least=0
  )
  guess_end: str | None = setting(
    None, "text that ends a guess, which SFT alone learns; None: there is none"
  )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns grad L_RL + weight grad L_SFT, or grad L_RL alone.

  Alone where the cosine of the two, over the whole tree, is below 0: a rule on
  gradients that is not the gradient of any one loss. Up to `guess_end` a text
  is a guess: a demonstration's is all that SFT sees, a sample's is what RL does
  not. Ours: the guess of SFT is the demonstration's, after the same prompt,
  since the paper does not say which tokens of a sample the label is compared
  with; what has no `guess_end` has no guess.
  """

  def weigh(found: updates.Found) -> updates.Mix:
    opposed = found.agreement.cosine < 0
    return updates.Mix(jnp.where(opposed, 0.0, options.sft_weight), 1.0)

  method = updates.joint(setup, weigh)
  if options.guess_end is None:
    return method
  return method._replace(batches=guesses_apart(options.guess_end))


def guesses_apart(end: str) -> contract.Batches:
  """Returns the host-side program: SFT sees the guesses, RL the rest."""

  def batches(host: contract.Host) -> Iterator[StepBatch]:
    def guess(tokens: np.ndarray) -> int:
      return endings.stopped_at(tokens, 0, (end,), host.text) or 0

    answers = host.sample()
    rollout = answers.rollout
    guesses = np.array(
      [
        guess(row[:length])
        for row, length in zip(rollout.tokens, rollout.lengths, strict=True)
      ]
    )
    host.log({"rollout/guess_share": float(np.mean(guesses > 0))})
    for rl in host.rl(answers, count_from=guesses):
      own = [
        d._replace(solution=d.solution[: guess(d.solution)])
        for d in host.demonstrations()
      ]
      yield StepBatch(rl=rl, sft=host.sft(own))

  return batches
