"""PEAR: SFT that prepares for RL, then RL (arXiv 2602.01058)."""

import dataclasses
from typing import Literal

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, sft_then_rl
from bilevel_jax.objectives import continuation


@dataclasses.dataclass(frozen=True)
class Options(sft_then_rl.Options):
  form: Literal["token", "block", "sequence"] = setting(
    "token",
    "what a token is weighed by: the tokens that follow, their blocks, or the "
    "whole sequence",
  )
  gamma: float = setting(
    0.999, "discount of each token that follows", above=0, at_most=1
  )
  block: int = setting(4, "tokens of a block, with form=block", at_least=1)
  lowest_ratio: float = setting(
    -0.08,
    "lower bound of a token's log-probability under the policy less that "
    "under what wrote the demonstration, nats",
    at_most=0,
  )
  highest_ratio: float = setting(
    0.3,
    "upper bound of a token's log-probability under the policy less that "
    "under what wrote the demonstration, nats",
    at_least=0,
  )
  lowest: float = setting(-10.0, "lower bound of a weight's log", at_most=0)
  highest: float = setting(5.0, "upper bound of a weight's log", at_least=0)


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns SFT weighed by how the policy would go on, then RL.

  A demonstration's token weighs as much as the policy, rather than what wrote
  the demonstration, would make what follows it (`objectives.continuation`),
  beside what `sft.token_weight` says. The stages are those of `sft_then_rl`; a
  `sft_share` of 1 is the first one alone.
  """

  def weights(logprobs, entropies, batch):
    return continuation.weights(
      logprobs,
      batch.expert_logprobs,
      batch.weights,
      batch.segment_ids,
      form=options.form,
      gamma=options.gamma,
      block=options.block,
      ratio_bounds=(options.lowest_ratio, options.highest_ratio),
      bounds=(options.lowest, options.highest),
    )

  method = sft_then_rl.stages(
    options,
    setup,
    reference=options.reference,
    objective=setup.sft_loss(context=weights),
  )
  return method._replace(needs=method.needs._replace(expert="demonstrations"))
