"""Settings of the two losses that every method combines."""

import dataclasses
from typing import Literal

from bilevel_jax.fields import setting
from bilevel_jax.objectives import policy_gradient


@dataclasses.dataclass(frozen=True)
class RL(policy_gradient.PolicyGradient):
  ratio: Literal["token", "sequence"] = setting(
    "token", "what is clipped: each token's ratio, or its sequence's (GSPO)"
  )
  clip: Literal["objective", "weight"] = setting(
    "objective", "PPO's clip of the objective, or CISPO's of a token's weight"
  )
  kl_estimate: policy_gradient.KLEstimate = setting(
    "k3",
    "the KL term: a loss of each token (k3, as in GRPO, or k2), or part of the "
    "reward (as in RLOO); what each has the gradient of: docs/methods.md",
  )
  advantage: policy_gradient.Advantage = setting(
    "group_std", "baseline and scale of a reward (docs/methods.md)"
  )
  weighting: Literal["token_mean", "sequence_mean", "constant"] = setting(
    "token_mean", "how tokens are weighted (objectives.weighting)"
  )
  truncated: Literal["keep", "drop"] = setting(
    "keep", "completions cut by length: in the loss, or out (overlong filter)"
  )
  updates_per_rollout: int = setting(
    1, "mini-batches that a step's rollouts are split into", at_least=1
  )
  passes_per_rollout: int = setting(
    1, "times that a step's rollouts are gone through", at_least=1
  )


@dataclasses.dataclass(frozen=True)
class SFT:
  weighting: Literal["token_mean", "sequence_mean", "constant"] = setting(
    "token_mean", "how tokens are weighted (objectives.weighting)"
  )
  token_weight: Literal["one", "probability", "uncertain", "trust_region"] = (
    setting(
      "one",
      "each token's weight by its probability p: 1, p (DFT), "
      "p(1-p) (CHORD's phi), min(1, p / trust_region) (TRAPO)",
    )
  )
  trust_region: float = setting(
    0.1, "of token_weight=trust_region", above=0, at_most=1
  )
