"""Losses of tokens that a completion was given and did not draw.

What a demonstration's beginning teaches is the method's to say: nothing, its
likelihood (TRAPO, 2512.17636; UFT, 2505.16984), or what the completion that
grew from it was worth (Prefix-RFT, 2507.01679).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel_jax.objectives import token_weights
from bilevel_jax.types import Array, RLBatch

PrefixLoss = Callable[[Array, Array, Array, RLBatch], Array]
"""(log-probs, policy-gradient losses, entropies, each [B, T], batch) -> losses
[B, T], read where `batch.prefixed` is 1."""


def nothing(
  logprobs: Array, surrogate: Array, entropies: Array, batch: RLBatch
) -> jax.Array:
  """Returns 0.

  Args:
    logprobs: [B, T].
    surrogate: [B, T], unread.
    entropies: [B, T], unread.
  """
  return jnp.zeros_like(logprobs)


def likelihood(
  token_weight: token_weights.TokenWeight, coefficient: float = 1.0
) -> PrefixLoss:
  """Returns -coefficient sg[omega] log p."""

  def loss(logprobs, surrogate, entropies, batch):
    # How likely a token is now is data: only its log-prob is descended.
    weight = jax.lax.stop_gradient(token_weight(logprobs))
    return -coefficient * weight * logprobs

  return loss


def policy_gradient(top_share: float) -> PrefixLoss:
  """Returns the policy-gradient loss on a prefix's most uncertain tokens.

  They have the advantage of the completion that they begin; the others have no
  loss, since to repeat what was sure teaches nothing.

  Args:
    top_share: of a prefix's tokens, those of the highest entropy.
  """

  def loss(logprobs, surrogate, entropies, batch):
    kept = most_uncertain(entropies, batch.prefixed, share=top_share)
    return jnp.where(kept, surrogate, 0.0)

  return loss


def most_uncertain(
  entropies: Array, prefixed: Array, *, share: float
) -> jax.Array:
  """Returns [B, T] bool: of each row's given tokens, the top ones.

  So many as share * (their number), rounded up; of equal ones the earliest.

  Args:
    entropies: [B, T].
    prefixed: [B, T], 1 on given tokens.
    share: in [0, 1].
  """
  there = jnp.asarray(prefixed) > 0
  order = jnp.argsort(jnp.where(there, -entropies, jnp.inf), axis=1)
  rank = jnp.argsort(order, axis=1)
  count = there.sum(axis=1, keepdims=True)
  # 0.2 * 5 is 1, not just above it.
  return there & (rank < jnp.ceil(share * count - 1e-4))
