"""Weights against what their names say."""

import numpy as np
import pytest

from bilevel_jax.objectives import weighting

MASK = np.zeros((4, 9), np.float32)
MASK[0, 2:5] = MASK[1, 1:9] = MASK[3, 4:5] = 1.0  # row 2 is empty
LOSSES = np.random.default_rng(0).random(MASK.shape).astype(np.float32)


def test_token_mean_is_the_mean_over_all_tokens():
  value = np.sum(weighting.token_mean(MASK) * LOSSES)
  np.testing.assert_allclose(value, LOSSES[MASK > 0].mean(), rtol=1e-6)


def test_sequence_mean_is_the_mean_of_the_rows_means():
  value = np.sum(weighting.sequence_mean(MASK) * LOSSES)
  means = [LOSSES[i, MASK[i] > 0].mean() for i in (0, 1, 3)]
  np.testing.assert_allclose(value, np.mean(means), rtol=1e-6)


def test_constant_divides_by_rows_and_a_fixed_length():
  value = np.sum(weighting.constant(16)(MASK) * LOSSES)
  np.testing.assert_allclose(
    value, LOSSES[MASK > 0].sum() / (3 * 16), rtol=1e-6
  )


@pytest.mark.parametrize("name", ["token_mean", "sequence_mean", "constant"])
def test_an_empty_batch_has_zero_weights_and_no_nan(name):
  weights = weighting.build(name, 16)(np.zeros_like(MASK))
  np.testing.assert_array_equal(weights, 0.0)


def test_a_mean_of_micro_batch_means_is_a_different_number():
  """The fault of arXiv 2604.23747, so that it is known when it comes back."""
  whole = np.sum(weighting.token_mean(MASK) * LOSSES)
  parts = [
    np.sum(weighting.token_mean(MASK[i : i + 2]) * LOSSES[i : i + 2])
    for i in (0, 2)
  ]
  assert abs(np.mean(parts) - whole) > 0.05 * whole
