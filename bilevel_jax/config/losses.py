"""Settings of the two losses that every method combines."""

import dataclasses
from typing import Literal

from bilevel_jax.config.fields import setting


@dataclasses.dataclass(frozen=True)
class RL:
  clip_low: float = setting(0.2, "lower clip of the ratio", at_least=0)
  clip_high: float = setting(0.2, "upper clip of the ratio", at_least=0)
  dual_clip: float | None = setting(
    None,
    "largest ratio that counts where the advantage is negative; None: any",
    above=1,
  )
  kl_coef: float = setting(1e-3, "weight of the KL to the start", at_least=0)
  ratio: Literal["token", "sequence"] = setting(
    "token", "what is clipped: each token's ratio, or its sequence's (GSPO)"
  )
  clip: Literal["objective", "weight"] = setting(
    "objective", "PPO's clip of the objective, or CISPO's of a token's weight"
  )
  advantage: Literal[
    "group_std",
    "group_mean",
    "leave_one_out",
    "batch_std",
    "group_mean_batch_std",
  ] = setting("group_std", "baseline and scale of a reward (docs/methods.md)")
  weighting: Literal["token_mean", "sequence_mean", "constant"] = setting(
    "token_mean", "how tokens are weighted (objectives.weighting)"
  )
  truncated: Literal["keep", "drop"] = setting(
    "keep", "completions cut by length: in the loss, or out (overlong filter)"
  )
  importance_cap: float | None = setting(
    2.0, "most that learner / sampler weighs a token; None: no weight", above=0
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
