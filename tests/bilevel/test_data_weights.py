"""Derivatives by data weights, against differences of the step itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax.bilevel import data_weights, problem, unrolled
from tests.bilevel import steps

pytestmark = pytest.mark.usefixtures("float64")

TERMS, SIZE = 5, 4


def _problem(seed=0):
  rng = np.random.default_rng(seed)
  a, b = rng.normal(size=(TERMS, SIZE)), rng.normal(size=TERMS)
  c = rng.normal(size=SIZE)
  losses = lambda x: jnp.tanh(a @ x["x"] - b) ** 2
  upper = lambda x: jnp.sum(jnp.cos(x["x"] - c))
  lower = lambda x, s: 0.3 * upper(x) + jnp.sum(s * losses(x))
  return losses, upper, lower, {"x": jnp.asarray(rng.normal(size=SIZE))}


@pytest.mark.parametrize("name", steps.OPTIMIZERS)
@pytest.mark.parametrize("mixed_product", ["exact", "finite_difference"])
def test_one_step_is_the_derivative_of_the_step(name, mixed_product):
  losses, upper, lower, x = _problem()
  optimizer = steps.OPTIMIZERS[name]
  state = steps.warm(optimizer, x)
  s = jnp.linspace(0.5, 1.5, TERMS)
  held = jax.grad(upper)(x)

  def along_held(s):
    gradient = jax.grad(lower)(x, s)
    return problem.inner(held, optimizer.update(gradient, state, x)[0])

  direction = data_weights.direction(
    optimizer, state, x, jax.grad(lower)(x, s), held
  )
  found = data_weights.along(losses, x, direction, mixed_product=mixed_product)
  tolerance = 1e-6 if mixed_product == "exact" else 1e-3
  np.testing.assert_allclose(
    found,
    steps.differences(along_held, s),
    rtol=tolerance,
    atol=tolerance * np.abs(found).max(),
  )


@pytest.mark.parametrize("name", steps.OPTIMIZERS)
def test_unrolled_with_one_step_is_the_derivative_after_it(name):
  """And one_step is that to first order in the rate."""
  losses, upper, lower, x = _problem()
  optimizer = steps.OPTIMIZERS[name]
  state = steps.warm(optimizer, x)
  s = jnp.linspace(0.5, 1.5, TERMS)

  def after(s):
    updates, _ = optimizer.update(jax.grad(lower)(x, s), state, x)
    return upper(optax.apply_updates(x, updates))

  of = lambda function: problem.gradient(
    lambda x, s, batch: (function(x, s), {})
  )
  found = unrolled.unrolled(optimizer, steps=1)(
    of(lambda x, s: upper(x)), of(lower), x, s, None, None, state
  )
  want = steps.differences(after, s)
  np.testing.assert_allclose(
    found.gradient, want, rtol=1e-6, atol=1e-6 * np.abs(want).max()
  )
  direction = data_weights.direction(
    optimizer, state, x, jax.grad(lower)(x, s), jax.grad(upper)(x)
  )
  first = data_weights.along(losses, x, direction, mixed_product="exact")
  apart = np.linalg.norm(first - want) / np.linalg.norm(want)
  assert 1e-6 < apart < 0.5


def test_along_a_zero_vector_nothing_changes():
  losses, _, _, x = _problem()
  zero = optax.tree.zeros_like(x)
  found = data_weights.along(losses, x, zero)
  np.testing.assert_array_equal(found, np.zeros(TERMS))
