"""Surrogates whose every derivative is that of the expected return.

A policy-gradient loss has the right gradient and, as a rule, wrong second
derivatives: it forgets that the distribution of the samples depends on the
parameters. Hypergradients need d2 J_RL / dadapter dbase, hence these.
Source: DiCE (arXiv 1802.05098), Loaded DiCE (arXiv 1909.10549).
"""

import chex
import jax
import jax.numpy as jnp

from bilevel_jax.types import Array


def magic(x: Array, at: Array | None = None) -> jax.Array:
  """Returns exp(x - at), whose every derivative is as of exp(x) / exp(at).

  By default `at` is x itself without its derivatives, and the value is 1.

  Args:
    x: [...] log-probabilities.
    at: [...] log-probabilities of the policy that sampled, a constant.
  """
  # What sampled is data: only the policy that is trained has a derivative.
  return jnp.exp(x - jax.lax.stop_gradient(x if at is None else at))


def dice(
  logprobs: Array,
  advantages: Array,
  mask: Array,
  behaviour_logprobs: Array | None = None,
) -> jax.Array:
  """Returns a surrogate return of each token, to be summed and averaged.

      [magic(c_t) - magic(c_{t-1})] A_t,   c_t = log-prob of tokens up to t

  The gradient of its sum is sum_t A_t grad log pi_t, as REINFORCE's. Exact at
  every order where A_t is a return-to-go minus anything that was known before
  token t (for a reward at the end: A_t = R - baseline). On its own samples the
  value is 0.

  Args:
    logprobs: [..., T] of the policy that is trained.
    advantages: [..., T] constants: no gradient flows in.
    mask: [..., T] 1 on sampled tokens, 0 on prompts and padding.
    behaviour_logprobs: [..., T] of the policy that sampled, if it is another
      one; the products of ratios have the variance of their length.

  Returns:
    [..., T], to be maximised.
  """
  chex.assert_equal_shape([logprobs, advantages, mask])
  upto = _magic_upto(logprobs, mask, behaviour_logprobs)
  before = jnp.concatenate(
    [jnp.ones_like(upto[..., :1]), upto[..., :-1]], axis=-1
  )
  # Between masked columns magic does not change: they count for nothing.
  return (upto - before) * jnp.asarray(jax.lax.stop_gradient(advantages))


def dice_cost(
  logprobs: Array,
  costs: Array,
  mask: Array,
  behaviour_logprobs: Array | None = None,
) -> jax.Array:
  """Returns magic(c_t) cost_t: costs that depend on the parameters themselves.

  For a KL term: with cost_t the k3 estimate, its sum's mean has every
  derivative of KL(pi || ref) over sequences; k3 on its own lacks the part
  that comes from which tokens are sampled.

  Args:
    logprobs: [..., T] of the policy that is trained.
    costs: [..., T] of each token, functions of the same parameters.
    mask: [..., T] 1 on sampled tokens, 0 on prompts and padding.
    behaviour_logprobs: [..., T] of the policy that sampled, if another one.

  Returns:
    [..., T].
  """
  chex.assert_equal_shape([logprobs, costs, mask])
  magic_upto = _magic_upto(logprobs, mask, behaviour_logprobs)
  return magic_upto * jnp.where(mask > 0, costs, 0)


def _magic_upto(
  logprobs: Array, mask: Array, behaviour_logprobs: Array | None
) -> jax.Array:
  # Masked by `where`, so that not even an infinity outside the mask counts.
  total = lambda x: jnp.cumsum(jnp.where(mask > 0, x, 0), axis=-1)
  at = None if behaviour_logprobs is None else total(behaviour_logprobs)
  return magic(total(logprobs), at)
