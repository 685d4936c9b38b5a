"""The direct preference loss against a loop over pairs."""

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax.objectives import preferences

QUESTIONS = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3])
CORRECT = np.array([1.0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 1])
SCORED = np.array([1.0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1])
BETA = 0.7


def test_it_is_the_mean_over_questions_of_the_mean_over_pairs():
  s = np.random.default_rng(0).normal(size=len(QUESTIONS))
  means = []
  for question in (0, 1):  # the other two have no pair
    rows = np.flatnonzero(question == QUESTIONS)
    losses = [
      np.log1p(np.exp(-BETA * (s[right] - s[wrong])))
      for right in rows[CORRECT[rows] == 1]
      for wrong in rows[CORRECT[rows] == 0]
    ]
    means.append(np.mean(losses))
  with jax.enable_x64(True):
    loss = preferences.direct(
      jnp.asarray(s), CORRECT, SCORED, QUESTIONS, beta=BETA
    )
  np.testing.assert_allclose(loss, np.mean(means), rtol=1e-12)


def test_without_a_pair_it_is_zero_and_flat():
  loss, slope = jax.value_and_grad(preferences.direct)(
    jnp.ones(2), np.ones(2), np.ones(2), np.zeros(2, int), beta=BETA
  )
  assert float(loss) == 0.0
  np.testing.assert_array_equal(slope, 0.0)
