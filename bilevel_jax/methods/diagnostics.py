"""What is logged about an update, computed inside it."""

import jax
import jax.numpy as jnp

from bilevel_jax.bilevel import problem
from bilevel_jax.objectives import policy_gradient
from bilevel_jax.types import RLBatch, Tree

_ROUNDING = 1e-5  # of float32 gradients that were summed, relative


def rollout_metrics(batch: RLBatch, aux: dict[str, jax.Array]) -> dict:
  """Returns token means of entropy, clipping and KL to the reference.

  And how far the sampler's log-probs are from the learner's, where the batch
  has them: the two run in different programs, in bfloat16 with different
  rounding.

  Args:
    aux: what the RL objective returned of it, each [B, T].
  """
  mean = _token_mean(batch)
  metrics = {"rl/clip_fraction": mean(aux["clipped"])}
  if aux["entropies"] is not None:
    metrics["rl/entropy"] = mean(aux["entropies"])
  if batch.ref_logprobs is not None:
    metrics["rl/kl_to_reference"] = mean(
      policy_gradient.kl_k3(aux["logprobs"], batch.ref_logprobs)
    )
  if batch.sampler_logprobs is not None:
    learner = (
      aux["logprobs"] if batch.old_logprobs is None else batch.old_logprobs
    )
    ratio = jnp.exp(learner - batch.sampler_logprobs)
    metrics |= {
      "rollout/importance_mean": mean(ratio),
      "rollout/importance_max": jnp.max(jnp.where(_sampled(batch), ratio, 0.0)),
      "rollout/kl_to_learner": mean(
        policy_gradient.kl_k3(batch.sampler_logprobs, learner)
      ),
      "rollout/importance_clipped": mean(aux["truncated"]),
    }
  return metrics


def rl_only_metrics(
  batch: RLBatch, aux: dict[str, jax.Array], rl_only_aux: dict[str, jax.Array]
) -> dict:
  """Returns how far the RL-only copy is, and the cooperative gain.

  The RL-only copy's gradient dies silently when shared rollouts leave its
  clip range, hence its own clip fraction. KL(base || rl_only_base) is the k3
  estimate on the shared rollouts, which the joint policy sampled.

  Args:
    aux: what the RL objective returned of it at the base, each [B, T].
    rl_only_aux: the same at the RL-only base, each [B, T].
  """
  mean = _token_mean(batch)
  old = aux["logprobs"] if batch.old_logprobs is None else batch.old_logprobs
  counted = batch.weights > 0
  log_ratio = jnp.sum(counted * (aux["logprobs"] - old), axis=1)
  rl_only_log_ratio = jnp.sum(counted * (rl_only_aux["logprobs"] - old), axis=1)
  gain, standard_error = policy_gradient.cooperative_gain(
    batch.rewards, batch.baselines, batch.scored, log_ratio, rl_only_log_ratio
  )
  return {
    "bilevel/cooperative_gain": gain,
    "bilevel/cooperative_gain_se": standard_error,
    "bilevel/kl_to_rl_only": mean(
      policy_gradient.kl_k3(aux["logprobs"], rl_only_aux["logprobs"])
    ),
    "bilevel/rl_only_clip_fraction": mean(rl_only_aux["clipped"]),
  }


def gradient_metrics(
  agreement: problem.Agreement,
  *,
  sft_weight: jax.typing.ArrayLike,
  rl_weight: jax.typing.ArrayLike,
) -> dict:
  """Returns the norms and the cosine of the base's SFT and RL gradients.

  And mix/sft_share = s / (s + r), s and r the norms times their weights: the
  effective mix. Two losses with the same coefficient are rarely mixed 1:1,
  since normalisers and reward scales differ.

  Args:
    agreement: of the two gradients, SFT's first.
    sft_weight: what the SFT gradient is multiplied by.
    rl_weight: what the RL gradient is multiplied by.
  """
  return {
    "sft/gradient_norm": agreement.upper_norm,
    "rl/gradient_norm": agreement.lower_norm,
    "bilevel/gradient_cosine": agreement.cosine,
    "mix/sft_share": sft_share(
      sft_weight * agreement.upper_norm, rl_weight * agreement.lower_norm
    ),
  }


def sft_share(sft: jax.typing.ArrayLike, rl: jax.typing.ArrayLike) -> jax.Array:
  """Returns sft / (sft + rl), 0 where both are 0.

  Args:
    sft: norm of what SFT moves the base by.
    rl: norm of what RL moves it by.
  """
  sft, total = jnp.asarray(sft), jnp.add(sft, rl)
  return jnp.where(total > 0, sft / jnp.where(total > 0, total, 1), 0)


def parts_metrics(direct: Tree, implicit: Tree) -> dict:
  """Returns the norms and the cosine of the adapter's gradient's two parts.

  In the penalty form the gain's gradient stands for the implicit part. The
  cosine is 0 where one part is nothing but rounding beside the other, as the
  gain's is at the first step, where both bases are the same.
  """
  found = problem.agreement(direct, implicit)
  norms = jnp.stack([found.upper_norm, found.lower_norm])
  real = norms.min() > _ROUNDING * norms.max()
  return {
    "bilevel/direct_norm": found.upper_norm,
    "bilevel/implicit_norm": found.lower_norm,
    "bilevel/parts_cosine": jnp.where(real, found.cosine, 0.0),
  }


def _token_mean(batch: RLBatch):
  counted = _sampled(batch)
  total = counted.sum().clip(min=1)
  return lambda x: jnp.sum(jnp.where(counted, x, 0.0)) / total


def _sampled(batch: RLBatch):
  counted = batch.weights > 0
  return counted if batch.prefixed is None else counted & (batch.prefixed == 0)
