"""Weights of demonstration tokens by how likely the policy finds them.

Each is the coefficient omega of grad log p on a token, a constant: what a
loss of p amounts to, with p = pi(token | what precedes it).

    SFT            -log p                    1
    DFT            -sg[p] log p              p
    CHORD's phi    -sg[p(1-p)] log p         p (1 - p)
    TRAPO          -p / sg[max(p, a)]        min(1, p / a)
    LUFFY          -p / (p + gamma)          gamma p / (p + gamma)^2

Sources: arXiv 2508.05629, 2508.11408, 2512.17636, 2504.14945.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel_jax.types import Array

TokenWeight = Callable[[Array], Array]
"""Log-probs [B, T] of demonstration tokens -> omega [B, T]."""


def one(logprobs: Array) -> jax.Array:
  """Returns 1: plain SFT.

  Args:
    logprobs: [B, T] of demonstration tokens.
  """
  return jnp.ones_like(logprobs)


def by_probability(logprobs: Array) -> jax.Array:
  """Returns p: DFT. The same as p's own gradient.

  Args:
    logprobs: [B, T] of demonstration tokens.
  """
  return jnp.exp(logprobs)


def uncertain(logprobs: Array) -> jax.Array:
  """Returns p (1 - p), CHORD's phi: most at p = 1/2, none at 0 and 1.

  Args:
    logprobs: [B, T] of demonstration tokens.
  """
  return -jnp.exp(logprobs) * jnp.expm1(logprobs)


def trust_region(bound: float) -> TokenWeight:
  """Returns min(1, p / bound): SFT on what the policy deems possible.

  Args:
    bound: in (0, 1]; towards 0 it is SFT, at 1 it is DFT.
  """
  return lambda logprobs: jnp.exp(jnp.minimum(0, logprobs - jnp.log(bound)))


def shaped(gamma: float) -> TokenWeight:
  """Returns gamma p / (p + gamma)^2: most, 1/4, at p = gamma."""

  def weight(logprobs: Array) -> jax.Array:
    p = jnp.exp(logprobs)
    return gamma * p / (p + gamma) ** 2

  return weight


def build(name: str, bound: float) -> TokenWeight:
  """Returns the weight of that name; `bound` is trust_region's."""
  return {
    "one": one,
    "probability": by_probability,
    "uncertain": uncertain,
    "trust_region": trust_region(bound),
  }[name]
