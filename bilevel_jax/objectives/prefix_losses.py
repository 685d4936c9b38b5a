"""Losses of tokens that a completion was given and did not draw.

What a demonstration's beginning teaches is the method's to say: nothing, its
likelihood (TRAPO, 2512.17636; UFT, 2505.16984), or what the completion that
grew from it was worth (Prefix-RFT, 2507.01679).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel_jax.objectives import policy_gradient, token_weights
from bilevel_jax.types import Array, RLBatch

PrefixLoss = Callable[[Array, Array, Array, RLBatch], Array]
"""(log-probs, old log-probs, entropies, each [B, T], batch) -> losses [B, T],
read where `batch.given` is 1."""


def nothing(
  logprobs: Array, old_logprobs: Array, entropies: Array, batch: RLBatch
) -> jax.Array:
  """Returns 0."""
  del old_logprobs, entropies, batch
  return jnp.zeros_like(logprobs)


def likelihood(
  token_weight: token_weights.TokenWeight, coefficient: float = 1.0
) -> PrefixLoss:
  """Returns -coefficient sg[omega] log p.

  Args:
    token_weight: omega, by log p.
    coefficient: of the whole.
  """

  def loss(logprobs, old_logprobs, entropies, batch):
    del old_logprobs, entropies, batch
    # How likely a token is now is data: only its log-prob is descended.
    weight = jax.lax.stop_gradient(token_weight(logprobs))
    return -coefficient * weight * logprobs

  return loss


def reinforced(
  *, top_share: float, clip_low: float, clip_high: float
) -> PrefixLoss:
  """Returns PPO's clipped loss on a prefix's most uncertain tokens, else 0.

  They have the advantage of the completion that they begin; the others are
  left as they are, since to repeat what was sure teaches nothing.

  Args:
    top_share: of a prefix's tokens, those of the highest entropy.
    clip_low: how far below 1 the ratio to the old policy counts.
    clip_high: how far above 1 the ratio counts.
  """

  def loss(logprobs, old_logprobs, entropies, batch):
    kept = most_uncertain(
      entropies, batch.given, batch.segment_ids, share=top_share
    )
    losses, _ = policy_gradient.clipped_surrogate(
      logprobs,
      old_logprobs,
      batch.advantages * kept,
      clip_low=clip_low,
      clip_high=clip_high,
    )
    return losses

  return loss


def most_uncertain(
  entropies: Array, given: Array, segment_ids: Array, *, share: float
) -> jax.Array:
  """Returns [B, T] bool: of each sequence's given tokens, the top ones.

  So many as share * (their number), rounded up; of equal ones the earliest.

  Args:
    entropies: [B, T].
    given: [B, T], 1 on given tokens.
    segment_ids: [B, T], the sequences of a row.
    share: in [0, 1].
  """
  # Other tokens form a group of their own, after all sequences.
  group = jnp.where(given > 0, segment_ids, segment_ids.shape[1] + 1)
  order = jnp.lexsort((-entropies, group), axis=-1)
  place = jnp.argsort(order, axis=-1)
  ordered = jnp.take_along_axis(group, order, axis=-1)
  find = lambda side: jax.vmap(
    lambda values, wanted: jnp.searchsorted(values, wanted, side=side)
  )(ordered, group)
  first, end = find("left"), find("right")
  count = jnp.ceil(share * (end - first) - 1e-4)  # 0.2 * 5 is 1, not above it
  return (place - first < count) & (jnp.asarray(given) > 0)
