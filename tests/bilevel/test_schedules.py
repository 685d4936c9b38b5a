"""Rules for the penalty."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax import errors
from bilevel_jax.bilevel import schedules


def _run(rule, gaps):
  def step(state, gap):
    penalty, state = rule.update(state, gap)
    return state, penalty

  return np.asarray(jax.lax.scan(step, rule.init(), jnp.asarray(gaps))[1])


@pytest.mark.parametrize(
  ("schedule", "want"),
  [(0.3, [0.3, 0.3, 0.3]), (optax.linear_schedule(0.0, 1.0, 2), [0, 0.5, 1])],
)
def test_rules_of_time_do_not_read_the_gap(schedule, want):
  got = _run(schedules.scheduled(schedule), [np.nan, 1e9, 0.0])
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_penalty_rises_while_the_gap_is_above_its_target_and_falls_below():
  rule = schedules.adaptive(start=0.5, target=0.1)
  up = _run(rule, [0.2] * 5)
  down = _run(rule, [0.0] * 5)
  assert (np.diff(up) > 0).all()
  np.testing.assert_allclose(up[0], 1 / (1 + np.exp(-0.1)), rtol=1e-6)
  np.testing.assert_allclose(up + down, 1, rtol=1e-6)
  np.testing.assert_allclose(_run(rule, [0.1] * 5), 0.5, rtol=1e-6)


def test_penalty_stays_within_its_bounds():
  rule = schedules.adaptive(start=0.5, target=0.1, rate=1.0)
  np.testing.assert_allclose(_run(rule, [1e9] * 9)[-1], 0.99, rtol=1e-6)
  np.testing.assert_allclose(_run(rule, [-1e9] * 9)[-1], 0.01, rtol=1e-6)


def test_a_gap_that_is_not_a_number_changes_nothing():
  rule = schedules.adaptive(start=0.5, target=0.1)
  np.testing.assert_allclose(_run(rule, [np.nan] * 3), 0.5, rtol=1e-6)


def test_adaptive_penalty_settles_where_the_gap_meets_its_target():
  """The gap of min (1 - p)(x - 1)^2 + p x^2 at its optimum is (1 - p)^2."""
  rule = schedules.adaptive(start=0.3, target=0.04)

  def step(carry, _):
    state, gap = carry
    penalty, state = rule.update(state, gap)
    return (state, (1 - penalty) ** 2), penalty

  _, penalties = jax.lax.scan(step, (rule.init(), 0.49), None, length=300)
  np.testing.assert_allclose(penalties[-1], 0.8, rtol=1e-3)


@pytest.mark.parametrize(
  ("settings", "complaint"),
  [
    ({"start": 1.0, "target": 0.1}, r"start must be from 0.01 to 0.99, got 1"),
    ({"start": 0.5, "target": 0.0}, "above 0, got 0.0"),
  ],
)
def test_bad_settings_are_refused_with_the_value(settings, complaint):
  with pytest.raises(errors.ConfigError, match=complaint):
    schedules.adaptive(**settings)
