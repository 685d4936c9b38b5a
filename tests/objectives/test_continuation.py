"""PEAR's weights and sums over sequences, against slow loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax.objectives import continuation, sequences

SEGMENTS = np.array([[1] * 9 + [2] * 6 + [0], [1] * 14 + [0] * 2], np.int32)
MASK = np.array(
  [[0, 0] + [1] * 7 + [0] + [1] * 5 + [0], [0] * 3 + [1] * 11 + [0] * 2],
  np.float32,
)
SETTINGS = {
  "gamma": 0.9,
  "block": 4,
  "ratio_bounds": (-0.3, 0.4),
  "bounds": (-0.7, 0.8),
}


def _sequences():
  """Yields the columns that count of each sequence, in order."""
  for row, segments in enumerate(SEGMENTS):
    for segment in range(1, segments.max() + 1):
      yield row, np.flatnonzero((segments == segment) & (MASK[row] > 0))


def _log_ratios():
  return np.random.default_rng(0).normal(0, 0.3, MASK.shape)


def _weights(form, log_ratios=None, **changes):
  log_ratios = _log_ratios() if log_ratios is None else log_ratios
  with jax.enable_x64(True):
    writer = np.full(MASK.shape, -1.0)
    return continuation.weights(
      jnp.asarray(log_ratios + writer),
      jnp.asarray(writer),
      MASK,
      SEGMENTS,
      form=form,
      **(SETTINGS | changes),
    )


@pytest.mark.parametrize("form", ["token", "block", "sequence"])
def test_a_weight_is_the_product_of_the_ratios_that_follow(form):
  """Every product written out, over clipped ratios, and clipped itself."""
  weights, seen = np.asarray(_weights(form)), set()
  ratios = np.exp(np.clip(_log_ratios(), -0.3, 0.4))
  for row, columns in _sequences():
    length = len(columns)
    for t, column in enumerate(columns, start=1):
      end = {"token": t, "sequence": 0, "block": min(-(-t // 4) * 4, length)}
      after = columns[end[form] :]
      discount = 1.0 if form == "sequence" else 0.9 ** len(after)
      product = discount * np.prod(ratios[row, after])
      expected = np.clip(product, np.exp(-0.7), np.exp(0.8))
      np.testing.assert_allclose(weights[row, column], expected, rtol=1e-12)
      seen.add(bool(product != expected))
  assert seen == {True, False} or form == "sequence"
  assert (weights[MASK == 0] == 1).all()


@pytest.mark.parametrize("form", ["token", "block", "sequence"])
def test_without_ratios_and_discount_every_token_weighs_the_same(form):
  zero = np.zeros(MASK.shape)
  np.testing.assert_array_equal(_weights(form, zero, gamma=1.0), 1.0)


def test_sums_stay_within_their_sequences():
  x = np.random.default_rng(1).normal(size=MASK.shape)
  with jax.enable_x64(True):
    total = sequences.total(jnp.asarray(x * MASK), SEGMENTS)
    after = sequences.after(jnp.asarray(x * MASK), SEGMENTS)
    mean = sequences.mean(jnp.asarray(x), MASK, SEGMENTS)
  for row, columns in _sequences():
    for number, column in enumerate(columns):
      values = x[row, columns]
      np.testing.assert_allclose(total[row, column], values.sum())
      np.testing.assert_allclose(mean[row, column], values.mean())
      np.testing.assert_allclose(
        after[row, column], values[number + 1 :].sum(), atol=1e-12
      )
