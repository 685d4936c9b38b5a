"""Policy-gradient losses and advantages: functions of arrays."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax.fields import setting
from bilevel_jax.types import Array, pytree

Advantage = Literal[
  "group_std",
  "group_mean",
  "leave_one_out",
  "batch_std",
  "batch_std_by_token",
  "group_mean_batch_std",
]

KLEstimate = Literal["k3", "k2", "reward"]


@pytree
class PolicyGradient:
  """The numbers of a policy-gradient loss; the settings `rl.*` have the same.

  A pytree: they may be arguments of a compiled program, so nothing is decided
  by a value, only by whether a number is there.
  """

  clip_low: float = setting(0.2, "lower clip of the ratio", at_least=0)
  clip_high: float = setting(0.2, "upper clip of the ratio", at_least=0)
  dual_clip: float | None = setting(
    None,
    "largest ratio that counts where the advantage is negative; None: any",
    above=1,
  )
  kl_coef: float = setting(1e-3, "weight of the KL to the start", at_least=0)
  importance_cap: float | None = setting(
    2.0, "most that learner / sampler weighs a token; None: no weight", above=0
  )
  log_ratio_bound: float | None = setting(
    None,
    "largest absolute log of the ratio that counts, in nats; beyond it a token "
    "has no gradient (verl: 20, and 10 with ratio=sequence); None: any",
    above=0,
  )
  kl_bound: float | None = setting(
    None,
    "largest KL estimate of a token that counts, in nats; beyond it the KL has "
    "no gradient (verl: 10); None: any",
    above=0,
  )


def clipped_surrogate(
  logprobs: Array,
  old_logprobs: Array,
  advantages: Array,
  numbers: PolicyGradient,
  *,
  sequences: Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns PPO's clipped loss of each token, and where the clip binds.

  -min(r A, clip(r, 1 - low, 1 + high) A), r = pi / pi_old (arXiv 1707.06347).
  On policy r is 1 and the gradient is REINFORCE's, -A grad log pi. Right to
  first order only: its mixed second derivatives are not those of J_RL. Where A
  is negative it grows with r without a bound; dual-clip PPO takes c A for what
  is below it (arXiv 1912.09729).

  Args:
    logprobs: [B, T] of the policy that is trained.
    old_logprobs: [B, T] of the policy that sampled; no gradient flows in.
    advantages: [B, T].
    numbers: low and high are how far below and above 1 the ratio counts, c is
      its `dual_clip`.
    sequences: [B, T] bool, the sampled tokens; r is then GSPO's (`ratio`).

  Returns:
    losses [B, T], and clipped [B, T]: 1 where the token's gradient is cut.
  """
  chex.assert_equal_shape([logprobs, advantages])
  r = ratio(logprobs, old_logprobs, numbers, sequences)
  bounded = jnp.clip(r, 1.0 - numbers.clip_low, 1.0 + numbers.clip_high)
  unclipped, clipped = r * advantages, bounded * advantages
  least, cut = jnp.minimum(unclipped, clipped), clipped < unclipped
  if numbers.dual_clip is not None:
    too_low = (advantages < 0) & (r > numbers.dual_clip)
    least = jnp.where(too_low, numbers.dual_clip * advantages, least)
    cut |= too_low
  return -least, cut


def clipped_weight(
  logprobs: Array,
  old_logprobs: Array,
  advantages: Array,
  numbers: PolicyGradient,
  *,
  sequences: Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns CISPO's loss of each token, and where the clip binds.

  -sg[clip(r, 1 - low, 1 + high)] A log pi: the clip bounds a token's weight
  and never drops its gradient (arXiv 2506.13585).

  Args:
    logprobs: [B, T] of the policy that is trained.
    old_logprobs: [B, T] of the policy that sampled; no gradient flows in.
    advantages: [B, T].
    numbers: low and high; a low of 1 or more is no lower clip.
    sequences: as in `clipped_surrogate`.
  """
  chex.assert_equal_shape([logprobs, advantages])
  # The weight is a constant: the gradient is that of log pi alone.
  r = ratio(logprobs, old_logprobs, numbers, sequences)
  r = jax.lax.stop_gradient(r)
  bounded = jnp.clip(r, 1.0 - numbers.clip_low, 1.0 + numbers.clip_high)
  return -bounded * advantages * logprobs, bounded != r


def ratio(
  logprobs: Array,
  old_logprobs: Array,
  numbers: PolicyGradient,
  sequences: Array | None = None,
) -> jax.Array:
  """Returns r = pi / pi_old of each token, or GSPO's of its sequence.

  GSPO (arXiv 2507.18071) takes s = exp(mean over tokens of log r) for all
  tokens of a sequence. The token form: each has the value s and the gradient
  s grad log pi, so that a mean over the sequence has the gradient of s.

  Args:
    logprobs: [B, T] of the policy that is trained.
    old_logprobs: [B, T] of the policy that sampled; no gradient flows in.
    numbers: `log_ratio_bound` is the largest |log r|.
    sequences: [B, T] bool, the sampled tokens of each row; None: per token.
  """
  chex.assert_rank(logprobs, 2)
  chex.assert_equal_shape([logprobs, old_logprobs])
  # The sampling policy is data: only the trained policy has a gradient.
  log_ratio = logprobs - jax.lax.stop_gradient(old_logprobs)
  if sequences is not None:
    total = jnp.sum(jnp.where(sequences, log_ratio, 0), axis=1, keepdims=True)
    length = sequences.sum(axis=1, keepdims=True).clip(min=1)
    # The value is the sequence's, the derivative each token's own.
    log_ratio = jax.lax.stop_gradient(total / length - logprobs) + logprobs
  if (bound := numbers.log_ratio_bound) is not None:
    log_ratio = jnp.clip(log_ratio, -bound, bound)
  return jnp.exp(log_ratio)


def truncated_importance(
  logprobs: Array, sampler_logprobs: Array, *, cap: float
) -> tuple[jax.Array, jax.Array]:
  """Returns min(pi / pi_sampler, cap) of each token, and where it is capped.

  Sampler and learner are two programs, and in low precision two
  distributions; this weight makes up for it, at a bounded variance. A
  constant: no gradient flows through it. Source: truncated importance
  sampling, Ionides 2008; for rollouts of language models, Yao et al. 2025.

  Args:
    logprobs: [B, T] of the learner's policy at the weights that sampled.
    sampler_logprobs: [B, T] as the sampler reported them.
  """
  chex.assert_equal_shape([logprobs, sampler_logprobs])
  ratio = jnp.exp(jax.lax.stop_gradient(logprobs) - sampler_logprobs)
  return jnp.minimum(ratio, cap), ratio > cap


def kl_k3(logprobs: Array, ref_logprobs: Array) -> jax.Array:
  """Returns k3 = exp(d) - d - 1, d = log ref - log pi, for each token.

  Its mean over pi's samples is KL(pi || ref); it is never negative, and 0
  where the two agree (Schulman, "Approximating KL divergence", 2020).

  Args:
    logprobs: [B, T] of tokens sampled from pi.
    ref_logprobs: [B, T] of the same tokens under the reference.
  """
  chex.assert_equal_shape([logprobs, ref_logprobs])
  difference = ref_logprobs - logprobs
  return jnp.expm1(difference) - difference


def kl_k2(logprobs: Array, ref_logprobs: Array) -> jax.Array:
  """Returns k2 = d^2 / 2, d = log pi - log ref, for each token.

  As a loss on pi's samples it has the gradient d grad log pi, which is that of
  KL(pi || ref) at each token; k3's is that of KL(ref || pi).

  Args:
    logprobs: [B, T] of tokens sampled from pi.
    ref_logprobs: [B, T] of the same tokens under the reference.
  """
  chex.assert_equal_shape([logprobs, ref_logprobs])
  return jnp.square(logprobs - ref_logprobs) / 2


def kl_to_go(logprobs: Array, ref_logprobs: Array, sampled: Array) -> jax.Array:
  """Returns the sum of d = log pi - log ref from each token to its row's end.

  Taken from a token's advantage, it adds to the loss the gradient of
  KL(pi || ref) over whole sequences: a token also answers for where it leads.

  Args:
    logprobs: [B, T] of tokens sampled from pi, constants.
    ref_logprobs: [B, T] of the same tokens under the reference.
    sampled: [B, T] bool, what is summed over; 0 elsewhere.
  """
  chex.assert_equal_shape([logprobs, ref_logprobs, sampled])
  d = jnp.where(sampled, logprobs - ref_logprobs, 0.0)
  return jnp.where(sampled, jnp.cumsum(d[:, ::-1], axis=1)[:, ::-1], 0.0)


def group_advantages(
  rewards: np.ndarray,
  scored: np.ndarray,
  lengths: np.ndarray,
  *,
  normalise: Advantage,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the advantages and each sample's leave-one-out baseline.

      group_std      (r - mean) / (std + 1e-6)      GRPO, arXiv 2402.03300
      group_mean     r - mean                       Dr. GRPO, arXiv 2503.20783
      leave_one_out  r - mean of the others         RLOO, arXiv 2402.14740
      batch_std      as group_std, the batch one group
                                                    REINFORCE++, 2501.03262
      batch_std_by_token
                     as batch_std, a sample counted as often as it has tokens:
                     REINFORCE++ as verl has it
      group_mean_batch_std
                     r - mean, over its std in the batch: its variant with a
                     group baseline

  over scored samples, std with ddof 1. Zero for a sample that was not scored,
  and, but for the batch_stds, in a group with one scored sample or equal
  rewards.

  Args:
    rewards: [P, G].
    scored: [P, G] bool.
    lengths: [P, G] int, the tokens that each sampled.
    normalise: one of the rules above.

  Returns:
    advantages [P, G] float32, and baselines [P, G] float32: the mean reward
    of the group's other scored samples, 0 where there is none.
  """
  chex.assert_rank(rewards, 2)
  chex.assert_equal_shape([rewards, scored, lengths])
  rewards = np.where(scored, rewards, 0.0).astype(np.float64)
  count = scored.sum(axis=1, keepdims=True)
  total = rewards.sum(axis=1, keepdims=True)
  centred = np.where(scored, rewards - total / np.maximum(count, 1), 0.0)
  # Equal rewards must give 0, not rounding errors divided by almost 0.
  advantages = np.where(has_signal(rewards, scored)[:, None], centred, 0.0)
  degrees = np.maximum(count - 1, 1)
  if normalise == "group_std":
    variance = (centred**2).sum(axis=1, keepdims=True)
    advantages = advantages / (np.sqrt(variance / degrees) + 1e-6)
  elif normalise == "leave_one_out":
    advantages = advantages * count / degrees
  elif normalise == "batch_std":
    as_one = (x.reshape(1, -1) for x in (rewards, scored, lengths))
    advantages, _ = group_advantages(*as_one, normalise="group_std")
    advantages = advantages.reshape(rewards.shape)
  elif normalise == "batch_std_by_token":
    tokens = np.where(scored, lengths, 0)
    number = max(int(tokens.sum()), 1)
    centred = np.where(scored, rewards - (tokens * rewards).sum() / number, 0.0)
    variance = (tokens * centred**2).sum() / max(number - 1, 1)
    differ = has_signal(rewards.reshape(1, -1), scored.reshape(1, -1))
    advantages = differ * centred / (np.sqrt(variance) + 1e-6)
  elif normalise == "group_mean_batch_std":
    variance = (advantages**2).sum() / max(int(scored.sum()) - 1, 1)
    advantages = advantages / (np.sqrt(variance) + 1e-6)
  others = np.where(scored, total - rewards, 0.0)
  baselines = others / degrees
  return advantages.astype(np.float32), baselines.astype(np.float32)


def has_signal(rewards: np.ndarray, scored: np.ndarray) -> np.ndarray:
  """Returns [P] bool: two scored samples of the group differ in reward.

  Args:
    rewards: [P, G].
    scored: [P, G] bool.
  """
  highest = np.where(scored, rewards, -np.inf).max(axis=1)
  lowest = np.where(scored, rewards, np.inf).min(axis=1)
  return highest > lowest


def cooperative_gain(
  rewards: Array,
  baselines: Array,
  scored: Array,
  log_ratio: Array,
  rl_only_log_ratio: Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns the cooperative gain and its standard error.

  J_RL(theta, w) - J_RL(theta-hat, w), estimated on completions y that an
  older policy sampled: the mean over y of
  (reward - baseline) (rho(y) - rho_hat(y)), rho the ratio of whole-sequence
  probabilities to the sampler's. The baseline does not see y, so it lowers
  the variance and not the mean. Ours: the paper does not say how it measures
  the gain.

  Args:
    rewards: [B].
    baselines: [B] mean reward of the other samples of the same prompt.
    scored: [B] 1 where the row counts.
    log_ratio: [B] log pi(y; theta, w) - log pi_old(y).
    rl_only_log_ratio: [B] log pi(y; theta-hat, w) - log pi_old(y).
  """
  of_rows = [rewards, baselines, scored, log_ratio, rl_only_log_ratio]
  chex.assert_rank(rewards, 1)
  chex.assert_equal_shape(of_rows)
  count = scored.sum().clip(min=1)
  # Sequence ratios can overflow; e^20 is already hopeless as an estimate.
  rho = jnp.exp(jnp.clip(log_ratio, -20.0, 20.0))
  rho_hat = jnp.exp(jnp.clip(rl_only_log_ratio, -20.0, 20.0))
  gains = (rewards - baselines) * (rho - rho_hat)
  mean = jnp.sum(scored * gains) / count
  variance = jnp.sum(scored * (gains - mean) ** 2) / (count - 1).clip(min=1)
  return mean, jnp.sqrt(variance / count)
