"""Weights of demonstration tokens, against the losses they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax.objectives import token_weights

GAMMA, BOUND = 0.1, 0.15
EXPERT = np.array([0.45, 0.30, 0.12, 0.08, 0.05])


@pytest.mark.parametrize(
  ("weight", "loss"),
  [
    (token_weights.one, lambda p: -np.log(p)),
    (token_weights.by_probability, lambda p: -p),
    (token_weights.uncertain, lambda p: (1 - p) ** 2 / 2),
    (
      token_weights.trust_region(BOUND),
      lambda p: np.where(p < BOUND, -p / BOUND, -np.log(p)),
    ),
    (token_weights.shaped(GAMMA), lambda p: -p / (p + GAMMA)),
  ],
  ids=["one", "probability", "uncertain", "trust_region", "shaped"],
)
def test_a_weight_is_the_slope_of_its_loss_in_the_log_probability(weight, loss):
  """d loss / d log p = -weight, by differences in float64."""
  logprobs, step = np.log([0.01, 0.1, 0.2, 0.5, 0.97]), 1e-6
  slope = (loss(np.exp(logprobs + step)) - loss(np.exp(logprobs - step))) / (
    2 * step
  )
  with jax.enable_x64(True):
    np.testing.assert_allclose(weight(jnp.asarray(logprobs)), -slope, rtol=1e-7)


@pytest.mark.parametrize(
  ("weight", "optimum"),
  [
    (token_weights.one, EXPERT),
    # sqrt(gamma p_E / lambda) - gamma with the lambda that normalises it:
    # flatter than the expert.
    (
      token_weights.shaped(GAMMA),
      1.5 * np.sqrt(EXPERT) / np.sqrt(EXPERT).sum() - GAMMA,
    ),
    # p_E / lambda where possible; the token on the bound takes what is left.
    (
      token_weights.trust_region(BOUND),
      np.array([0.5625, 0.375, 0.0625, 0.0, 0.0]),
    ),
    (token_weights.by_probability, np.array([1.0, 0.0, 0.0, 0.0, 0.0])),
    (token_weights.uncertain, np.array([0.6, 0.4, 0.0, 0.0, 0.0])),
  ],
  ids=["one", "shaped", "trust_region", "probability", "uncertain"],
)
def test_where_imitation_of_a_distribution_comes_to_rest(weight, optimum):
  """The logits' gradient sum_c p_E(c) omega(c) (e_c - p) is 0 there."""
  with jax.enable_x64(True), np.errstate(divide="ignore"):
    omega = np.asarray(weight(jnp.log(jnp.asarray(optimum))))
  pull = EXPERT * np.where(optimum > 0, omega, 0.0)
  np.testing.assert_allclose(pull - optimum * pull.sum(), 0.0, atol=1e-12)


def test_the_trust_region_runs_from_sft_to_dft():
  logprobs = jnp.log(jnp.array([0.001, 0.3, 0.9]))
  np.testing.assert_allclose(token_weights.trust_region(1e-3)(logprobs), 1.0)
  np.testing.assert_allclose(
    token_weights.trust_region(1.0)(logprobs), jnp.exp(logprobs), rtol=1e-6
  )
