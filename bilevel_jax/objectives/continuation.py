"""PEAR's weights: how likely the policy makes the rest of a demonstration.

With the decisions' ratios to the policy that wrote the demonstration,
delta_t = clip(log pi(y_t) - log pi_writer(y_t), low, high), t from 1 to T:

    sequence  log G_t = sum of all delta
    token     log G_t = (T - t) log gamma + sum over j > t of delta_j
    block     as token, with the end of t's block in place of t

and log G_t is clipped. A token from which the policy would not go on as the
demonstration does has little weight. Source: arXiv 2602.01058.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from bilevel_jax.objectives import sequences
from bilevel_jax.types import Array

Form = Literal["token", "block", "sequence"]


def weights(
  logprobs: Array,
  writer_logprobs: Array,
  mask: Array,
  segment_ids: Array,
  *,
  form: Form,
  gamma: float,
  block: int,
  ratio_bounds: tuple[float, float],
  bounds: tuple[float, float],
) -> jax.Array:
  """Returns G [B, T], the coefficient of grad log pi; 1 where `mask` is not.

  Args:
    logprobs: [B, T] of the policy that is trained.
    writer_logprobs: [B, T] of the policy that wrote the tokens.
    mask: [B, T], 1 on the demonstration's tokens, which are in a row.
    segment_ids: [B, T] int32.
    gamma: discount of a token; not of `sequence`.
    block: tokens of a block, of `block`.
    ratio_bounds: least and largest delta, nats.
    bounds: least and largest log G, nats.
  """
  chex.assert_rank(logprobs, 2)
  chex.assert_equal_shape([logprobs, writer_logprobs, mask, segment_ids])
  counted = mask > 0
  delta = jnp.clip(logprobs - writer_logprobs, *ratio_bounds)
  delta = jnp.where(counted, delta, 0.0)
  if form == "sequence":
    log_weight = sequences.total(delta, segment_ids)
  else:
    ones = counted.astype(jnp.int32)
    left = sequences.after(ones, segment_ids)
    log_weight = left * jnp.log(gamma) + sequences.after(delta, segment_ids)
    if form == "block":
      length = sequences.total(ones, segment_ids)
      end = jnp.minimum(-(-(length - left) // block) * block, length)
      columns = jnp.arange(mask.shape[1])[None, :] + end - (length - left)
      log_weight = jnp.take_along_axis(
        log_weight, jnp.clip(columns, 0, mask.shape[1] - 1), axis=1
      )
  return jnp.where(counted, jnp.exp(jnp.clip(log_weight, *bounds)), 1.0)
