"""The supervised objective: minus the log-likelihood of demonstrations.

Source: J_SFT of BRIDGE, arXiv 2509.06948; ours: explicit weights for its mean.
"""

import chex
import jax
import jax.numpy as jnp

from bilevel_jax.types import Array


def negative_log_likelihood(logprobs: Array, weights: Array) -> jax.Array:
  """Returns -sum(weights * log p), a scalar: minus J_SFT.

  Args:
    logprobs: [B, T], as `logprobs.token_logprobs` gives them.
    weights: [B, T], as `weighting` gives them.
  """
  chex.assert_rank(logprobs, 2)
  chex.assert_equal_shape([logprobs, weights])
  return -jnp.sum(weights * logprobs)
