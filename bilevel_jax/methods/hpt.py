"""HPT: each question to RL or SFT, by how often it is solved (2509.04419)."""

import dataclasses

import numpy as np

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, routing, updates


@dataclasses.dataclass(frozen=True)
class Options:
  gate: float = setting(
    0.0, "share of right samples up to which a question goes to SFT", at_most=1
  )
  sft_weight: float = setting(
    1.0, "weight of the SFT loss, beside 1 for the RL loss", at_least=0
  )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns hybrid post-training.

  A question whose samples are right more often than `method.hpt.gate` is
  learned from by RL; any other by SFT on its own demonstration. Ours: a
  question without one stays with RL; one of which nothing could be scored is
  on no route. Each route counts as many questions as it has, so that a lone
  demonstration does not weigh as much as all rollouts; within it a question
  counts what its tokens do, and the same with `rl.weighting` and
  `sft.weighting` of sequence_mean.
  """

  def route(groups: contract.Groups, host: contract.Host) -> routing.Route:
    to_sft = groups.demonstrated & (groups.accuracy <= options.gate)
    advantages, _ = setup.advantages(*groups.outcomes)
    share = to_sft.sum() / np.isfinite(groups.accuracy).sum().clip(min=1)
    return routing.Route(
      rollouts=np.broadcast_to(~to_sft[:, None], groups.rewards.shape),
      advantages=advantages * np.float32(1 - share),
      demonstrations=to_sft,
      coefficients=np.full(len(to_sft), share),
    )

  mix = updates.Mix(sft_weight=options.sft_weight, rl_weight=1.0)
  method = updates.joint(setup, lambda found: mix)
  return routing.on_own_demonstrations(method, route)
