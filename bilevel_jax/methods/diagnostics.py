"""What is logged about an update, computed inside it."""

import jax
import jax.numpy as jnp
import optax

from bilevel_jax.objectives import policy_gradient
from bilevel_jax.types import RLBatch, Tree


def rollout_metrics(batch: RLBatch, aux: dict[str, jax.Array]) -> dict:
  """Returns token means of entropy, clipping and KL to the reference."""
  mean = _token_mean(batch)
  metrics = {
    "rl/entropy": mean(aux["entropies"]),
    "rl/clip_fraction": mean(aux["clipped"]),
  }
  if batch.ref_logprobs is not None:
    metrics["rl/kl_to_reference"] = mean(
      policy_gradient.kl_k3(aux["logprobs"], batch.ref_logprobs)
    )
  return metrics


def rl_only_metrics(
  batch: RLBatch, aux: dict[str, jax.Array], rl_only_aux: dict[str, jax.Array]
) -> dict:
  """Returns how far the RL-only branch is, and the cooperative gain.

  The RL-only branch's gradient dies silently when shared rollouts leave its
  clip range, hence its own clip fraction. KL(base || rl_only_base) is the k3
  estimate on the shared rollouts, which the joint policy sampled.
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


def gradient_metrics(sft: Tree, rl: Tree) -> dict:
  """Returns the norms and the cosine of the base's SFT and RL gradients."""
  sft_norm, rl_norm = optax.tree.norm(sft), optax.tree.norm(rl)
  products = jax.tree.map(lambda a, b: jnp.sum(a * b), sft, rl)
  inner = sum(jax.tree.leaves(products), jnp.zeros(()))
  tiny = jnp.finfo(jnp.float32).tiny
  return {
    "sft/gradient_norm": sft_norm,
    "rl/gradient_norm": rl_norm,
    "bilevel/gradient_cosine": inner / jnp.maximum(sft_norm * rl_norm, tiny),
  }


def _token_mean(batch: RLBatch):
  counted = batch.weights > 0
  total = counted.sum().clip(min=1)
  return lambda x: jnp.sum(jnp.where(counted, x, 0.0)) / total
