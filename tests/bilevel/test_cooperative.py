"""BRIDGE's objective F, through both variables' moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax.bilevel import cooperative, implicit, penalty, unrolled
from bilevel_jax.bilevel.problem import Problem, gradient
from tests.bilevel.quadratic import central_difference, quadratic, relative

pytestmark = pytest.mark.usefixtures("float64")

STATES = ("optimizer_state", "lower_only_state")


def _evaluate(estimators, problem, bases, adapter, weight, **kwargs):
  return jax.jit(
    lambda bases, adapter, weight, kwargs: cooperative.cooperative(
      *estimators,
      gradient(problem.upper),
      gradient(problem.lower),
      *bases,
      adapter,
      None,
      None,
      weight=weight,
      **kwargs,
    )
  )(bases, adapter, weight, kwargs)


def _objective(problem, optimizers, bases, states, weight, steps):
  """F itself, from plain steps."""

  def joint(base, adapter):
    return (1 - weight) * problem.upper(base, adapter, None)[
      0
    ] + weight * problem.lower(base, adapter, None)[0]

  def alone(base, adapter):
    return problem.lower(base, adapter, None)[0]

  def move(function, optimizer, base, state, adapter):
    for _ in range(steps):
      updates, state = optimizer.update(
        jax.grad(function)(base, adapter), state, base
      )
      base = optax.apply_updates(base, updates)
    return base

  def outcome(adapter):
    u = move(joint, optimizers[0], bases[0], states[0], adapter)
    v = move(alone, optimizers[1], bases[1], states[1], adapter)
    return joint(u, adapter) - weight * alone(v, adapter)

  return jax.jit(outcome)


def _start(q, optimizers, same):
  base = q.optimum + 0.3
  bases = (base, base if same else 1.1 * base)
  grad = gradient(q.problem.lower)(base, q.adapter, None).by_lower
  states = tuple(
    o.update(grad, o.init(b), b)[1]
    for o, b in zip(optimizers, bases, strict=True)
  )
  return bases, states


@pytest.mark.parametrize("same", [True, False], ids=["rebuilt", "persistent"])
@pytest.mark.parametrize("steps", [1, 3])
def test_both_moves_are_differentiated(steps, same):
  q = quadratic()
  adam = optax.adam(1e-2, eps_root=1e-16)
  optimizers = (adam, adam if same else optax.sgd(0.05))
  bases, states = _start(q, optimizers, same)
  got = _evaluate(
    [unrolled.unrolled(o, steps=steps) for o in optimizers],
    q.problem,
    bases,
    q.adapter,
    0.4,
    **dict(zip(STATES, states, strict=True)),
  )
  outcome = _objective(q.problem, optimizers, bases, states, 0.4, steps)
  want = central_difference(outcome, q.adapter)
  assert relative(got.gradient, want) < 1e-7


def _unrolled_sgd(q, bases, weight, step=0.05, steps=2):
  optimizer = optax.sgd(step)
  states = dict.fromkeys(STATES, optimizer.init(bases[0]))
  estimators = [unrolled.unrolled(optimizer, steps=steps)] * 2
  return _evaluate(estimators, q.problem, bases, q.adapter, weight, **states)


def test_all_weight_on_the_lower_level_leaves_no_gradient():
  q = quadratic()
  got = _unrolled_sgd(q, (q.optimum + 0.3,) * 2, 1.0)
  assert jnp.linalg.norm(got.joint.gradient) > 1
  np.testing.assert_allclose(got.gradient, 0, atol=1e-13)


def test_no_weight_on_it_leaves_the_unrolled_upper_level_to_the_bit():
  q = quadratic()
  far = jnp.full_like(q.optimum, 1e30)
  got = _unrolled_sgd(q, (q.optimum, far), 0.0)
  np.testing.assert_array_equal(got.gradient, got.joint.gradient)
  optimizer = optax.sgd(0.05)
  alone = jax.jit(
    lambda base, adapter: unrolled.unrolled(optimizer, steps=2)(
      gradient(q.problem.upper),
      gradient(q.problem.upper),
      base,
      adapter,
      None,
      None,
      optimizer.init(base),
    )
  )(q.optimum, q.adapter)
  np.testing.assert_allclose(got.gradient, alone.gradient, rtol=1e-14)


def test_at_both_optima_the_implicit_parts_vanish_and_the_penalty_remains():
  q = quadratic()
  weight = 0.6
  joint = jax.grad(
    lambda b: (
      (1 - weight) * q.problem.upper(b, q.adapter, None)[0]
      + weight * q.problem.lower(b, q.adapter, None)[0]
    )
  )
  base = -jnp.linalg.solve(
    (1 - weight) * q.C + weight * q.A, joint(jnp.zeros_like(q.optimum))
  )
  solver = implicit.conjugate_gradient(iterations=30, tolerance=1e-10)
  got = _evaluate(
    [implicit.implicit(solver)] * 2,
    q.problem,
    (base, q.optimum),
    q.adapter,
    weight,
  )
  np.testing.assert_allclose(got.joint.implicit, 0, atol=1e-9)
  terms = penalty.terms(q.problem, base, q.optimum, q.adapter, None, None)
  want = penalty.combine(terms, weight).upper
  assert relative(got.gradient, want) < 1e-9


def _both(q, optimizer, state, weight):
  """F's derivative to first order, and through one whole step."""
  base = q.optimum + 0.3
  got = cooperative.first_order(
    gradient(q.problem.upper),
    gradient(q.problem.lower),
    base,
    q.adapter,
    None,
    None,
    weight=weight,
    optimizer=optimizer,
    optimizer_state=state,
  )
  estimators = [unrolled.unrolled(optimizer, steps=1)] * 2
  want = _evaluate(
    estimators,
    q.problem,
    (base, base),
    q.adapter,
    weight,
    **dict.fromkeys(STATES, state),
  )
  return got, want


def _live(optimizer, q):
  """A state that has seen other gradients than those of the test."""
  state = optimizer.init(q.optimum)
  for scale in (1.0, -0.4):
    _, state = optimizer.update(scale * (1 + q.optimum), state, q.optimum)
  return state


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_first_order_error_is_of_second_order_in_the_step(name, weight):
  q = quadratic()
  make = {
    "sgd": optax.sgd,
    "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
    "adam": lambda lr: optax.adam(lr, eps_root=1e-16),
  }[name]
  errors = []
  for step in (2e-3, 1e-3):
    optimizer = make(step)
    got, want = _both(q, optimizer, _live(optimizer, q), weight)
    errors.append(float(jnp.linalg.norm(got.gradient - want.gradient)))
    assert jnp.linalg.norm(got.implicit) > 10 * errors[-1]
  np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.15)


def test_first_order_has_no_gradient_without_the_upper_level():
  q = quadratic()
  got, _ = _both(q, optax.sgd(0.05), optax.sgd(0.05).init(q.optimum), 1.0)
  np.testing.assert_array_equal(got.gradient, 0)


def test_lower_only_gradient_gets_its_own_batch():
  """Made of the lower batch and of what U's moves report of it."""

  def upper(b, w, batch):
    return jnp.sum((b - w * batch) ** 2), {}

  def lower(b, w, batch):
    return jnp.sum((b + w - batch) ** 2), {"seen": batch}

  problem = Problem(upper, lower)
  base, adapter = jnp.ones(3), jnp.full(3, 0.5)
  optimizer = optax.sgd(0.1)
  upper_batch, lower_batch = jnp.arange(6.0).reshape(2, 3)

  got = cooperative.cooperative(
    *[unrolled.unrolled(optimizer, steps=2)] * 2,
    gradient(upper),
    gradient(lower),
    base,
    base,
    adapter,
    upper_batch,
    lower_batch,
    weight=0.5,
    optimizer_state=optimizer.init(base),
    lower_only_state=optimizer.init(base),
    lower_only_batch=lambda batch, aux: batch + 1 + 0.5 * aux["seen"].sum(0),
  )

  def outcome(w):
    u = v = base
    joint = lambda b: (
      0.5 * problem.upper(b, w, upper_batch)[0]
      + 0.5 * problem.lower(b, w, lower_batch)[0]
    )
    # Of two moves, each of which reports the batch that it saw.
    alone = lambda b: lower(b, w, 2 * lower_batch + 1)[0]
    for _ in range(2):
      u = u - 0.1 * jax.grad(joint)(u)
      v = v - 0.1 * jax.grad(alone)(v)
    return joint(u) - 0.5 * alone(v)

  assert relative(got.gradient, jax.grad(outcome)(adapter)) < 1e-12
