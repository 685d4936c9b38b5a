"""One batch of rollouts and demonstrations under one normaliser."""

import dataclasses

import jax
import jax.numpy as jnp

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, updates
from bilevel_jax.types import TokenBatch


@dataclasses.dataclass(frozen=True)
class Options:
  demonstration_advantage: float = setting(
    1.0, "advantage that a demonstration's token counts with", at_least=0
  )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns the mean over all tokens of a step, whichever kind they are.

  A demonstration's token is a sampled one with the advantage
  `method.data_mix.demonstration_advantage`, so SFT weighs as much as it has
  tokens. One of the recipes of arXiv 2507.07562, whose definition could not
  be read: this one is ours. In `mixed` each part has a normaliser of its own.
  """
  advantage = options.demonstration_advantage

  def weigh(found: updates.Found) -> updates.Mix:
    sft, rl = _tokens(found.batch.sft), _tokens(found.batch.rl)
    total = (sft + rl).clip(min=1)
    return updates.Mix(sft_weight=advantage * sft / total, rl_weight=rl / total)

  return updates.joint(setup, weigh)


def _tokens(part: TokenBatch) -> jax.Array:
  return jnp.float32((part.weights != 0).sum())
