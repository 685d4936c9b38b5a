"""Variables moved by evidence, against the formula worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax.bilevel import slopes


def _after(steps):
  known = slopes.empty(len(steps[0]))
  for derivatives in steps:
    known = slopes.observe(known, jnp.array(derivatives), jnp.array(True))
  return known


@pytest.mark.parametrize("count", [1, 3, 20])
def test_steps_of_one_opinion_leave_the_prior_behind(count):
  """n times z = 1 and four of 0: m = n / (n + 4), se^2 = 4 m / ((n+3)(n+4))."""
  known = _after([[-2.0, 3.0]] * count)
  found = slopes.values(known, rate=2.0, doubt=4.0)
  m = count / (count + 4)
  noise = 4 * 4 * m / ((count + 4) * (count + 3))
  want = 2 * m * max(0, 1 - noise / m**2)
  np.testing.assert_allclose(found, [want, -want], rtol=1e-5, atol=1e-7)
  assert (want == 0) is (count == 1)


def test_a_step_that_says_nothing_changes_nothing():
  known = _after([[-2.0, 3.0]] * 6)
  after = slopes.observe(known, jnp.array([9.0, 9.0]), jnp.array(False))
  for name in ("steps", "sizes", "total", "squares"):
    np.testing.assert_array_equal(getattr(after, name), getattr(known, name))


def test_noise_leaves_variables_where_they_are_and_a_signal_does_not():
  """Beside 100 steps of heavy tails, a mean of one standard deviation."""
  rng = np.random.default_rng(0)
  noise = rng.standard_t(3, size=(100, 200)) / 3**0.5
  still = slopes.values(_after(noise), rate=2.0, doubt=4.0)
  moved = slopes.values(_after(noise - 1), rate=2.0, doubt=4.0)
  assert np.abs(still).mean() < 0.02
  assert np.min(moved) > 0.5


def test_a_single_outburst_counts_as_one_step():
  known = _after([[-1.0]] * 10 + [[1e6]])
  np.testing.assert_allclose(known.total, [9.0], rtol=1e-6)


def test_derivatives_of_zero_are_an_opinion_of_none():
  known = _after([[0.0], [0.0], [-1.0]])
  np.testing.assert_array_equal(known.total, [1.0])
