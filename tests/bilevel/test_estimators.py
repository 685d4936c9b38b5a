"""Each estimator against the closed form, differences, and one another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax import errors
from bilevel_jax.bilevel import implicit, mixed_mode, penalty, unrolled
from bilevel_jax.bilevel.problem import Problem, gradient
from bilevel_jax.training import optimizers
from tests.bilevel.quadratic import (
  M,
  N,
  central_difference,
  quadratic,
  relative,
)

pytestmark = pytest.mark.usefixtures("float64")

OPTIMIZERS = {
  "sgd": optax.sgd(0.05),
  "momentum": optax.sgd(0.02, momentum=0.9),
  "adam": optax.adam(1e-2, eps_root=1e-16),
  "adamw": optax.adamw(1e-2, weight_decay=0.1, eps_root=1e-16),
  "clip_and_adam": optax.chain(
    optimizers.clip_by_global_norm(1.0),
    optax.adam(optax.cosine_decay_schedule(1e-2, 40), eps_root=1e-16),
  ),
  "rmsprop": optax.rmsprop(1e-2),
  "partitioned": optax.partition(
    {"moves": optax.sgd(0.05), "stays": optax.set_to_zero()},
    {"first": "moves", "rest": "stays"},
  ),
}


def _estimate(estimator, problem, base, adapter, state=None, batch=None):
  return jax.jit(
    lambda base, adapter, state, batch: estimator(
      gradient(problem.upper),
      gradient(problem.lower),
      base,
      adapter,
      None,
      batch,
      state,
    )
  )(base, adapter, state, batch)


def _descend(optimizer, problem, base, state, adapter, batches):
  """Plain steps, as an oracle: no mixed mode, no checkpoint."""

  def step(carry, batch):
    base, state = carry
    grad = jax.grad(problem.lower, has_aux=True)(base, adapter, batch)[0]
    updates, state = optimizer.update(grad, state, base)
    return (optax.apply_updates(base, updates), state), None

  return jax.lax.scan(step, (base, state), batches)[0]


def _warm(optimizer, problem, base, adapter):
  """The live base and optimiser state of a run after 20 updates."""
  state = optimizer.init(base)
  return jax.jit(
    lambda: _descend(optimizer, problem, base, state, adapter, jnp.zeros(20))
  )()


def _in_parts(problem):
  """The problem with base as a tree, for optimisers that mask."""
  split = lambda b: jnp.concatenate([b["first"], b["rest"]])
  return Problem(*(lambda b, w, x, f=f: f(split(b), w, x) for f in problem))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unroll_agrees_with_central_differences(name):
  q, optimizer = quadratic(), OPTIMIZERS[name]
  problem = _in_parts(q.problem)
  start = {"first": jnp.ones(3), "rest": jnp.ones(N - 3)}
  start, state = _warm(optimizer, problem, start, q.adapter)
  batch = jnp.array(0.3)
  descend = jax.jit(
    lambda w: _descend(optimizer, problem, start, state, w, jnp.full(5, batch))
  )
  outcome = jax.jit(lambda w: problem.upper(descend(w)[0], w, None)[0])
  got = _estimate(
    unrolled.unrolled(optimizer, steps=5),
    problem,
    start,
    q.adapter,
    state,
    batch,
  )
  assert relative(got.gradient, central_difference(outcome, q.adapter)) < 1e-8
  np.testing.assert_allclose(got.gradient, got.direct + got.implicit)
  want = descend(q.adapter)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-12),
    (got.lower, got.optimizer_state),
    want,
  )
  assert got.lower_aux["base_sum"].shape == got.lower_loss.shape == (5,)


def test_mixed_mode_is_reverse_over_reverse():
  q, optimizer = quadratic(), OPTIMIZERS["clip_and_adam"]
  start, state = _warm(optimizer, q.problem, jnp.ones(N), q.adapter)
  got = _estimate(
    unrolled.unrolled(optimizer, steps=4), q.problem, start, q.adapter, state
  )

  @jax.jit
  def naive(adapter):
    base, _ = _descend(
      optimizer, q.problem, start, state, adapter, jnp.zeros(4)
    )
    return q.problem.upper(base, adapter, None)[0]

  assert relative(got.gradient, jax.grad(naive)(q.adapter)) < 1e-14


def test_objectives_may_close_over_values_that_are_traced():
  optimizer = optax.sgd(0.1)

  @jax.jit
  def run(base, adapter, tokens, weight):
    lower = lambda b, w, _: (weight * jnp.sum((b * w)[tokens] ** 2), {})
    estimate = unrolled.unrolled(optimizer, steps=2)
    return estimate(
      gradient(lower),
      gradient(lower),
      base,
      adapter,
      None,
      None,
      optimizer.init(base),
    ).gradient

  x, tokens = jnp.array([1.0, 2.0]), jnp.array([0, 1, 1])

  def outcome(adapter):
    base = x
    lower = lambda b: 0.5 * jnp.sum((b * adapter)[tokens] ** 2)
    for _ in range(2):
      base = base - 0.1 * jax.grad(lower)(base)
    return lower(base)

  got = run(x, x, tokens, 0.5)
  assert relative(got, jax.grad(outcome)(x)) < 1e-13


def test_unroll_tends_to_the_closed_form():
  q = quadratic()
  errors = [
    relative(
      _estimate(
        unrolled.unrolled(optax.sgd(q.step), steps=steps),
        q.problem,
        jnp.zeros(N),
        q.adapter,
        optax.sgd(q.step).init(jnp.zeros(N)),
      ).gradient,
      q.hypergradient,
    )
    for steps in (1, 5, 50, 400)
  ]
  assert errors == sorted(errors, reverse=True)
  assert errors[0] > 0.1
  assert errors[-1] < 1e-12


@pytest.mark.parametrize(
  "solver",
  [
    implicit.conjugate_gradient(iterations=30, tolerance=1e-12),
    implicit.neumann(terms=400, step=0.25),
  ],
  ids=["conjugate_gradient", "neumann"],
)
def test_implicit_is_the_closed_form(solver):
  q = quadratic()
  got = _estimate(implicit.implicit(solver), q.problem, q.optimum, q.adapter)
  assert relative(got.gradient, q.hypergradient) < 1e-10
  assert got.diagnostics["residual"] < 1e-11
  assert got.diagnostics["lower_gradient_norm"] < 1e-12


def test_conjugate_gradient_needs_as_many_iterations_as_dimensions():
  q = quadratic()
  solve = implicit.conjugate_gradient(iterations=100, tolerance=1e-12)
  got = _estimate(implicit.implicit(solve), q.problem, q.optimum, q.adapter)
  assert 5 < got.diagnostics["iterations"] <= N + 1
  few = implicit.conjugate_gradient(iterations=4, tolerance=1e-12)
  b = jnp.arange(1.0, N + 1)
  solution = few(lambda v: q.A @ v, b)
  assert solution.iterations == 4
  residual = jnp.linalg.norm(b - q.A @ solution.vector) / jnp.linalg.norm(b)
  np.testing.assert_allclose(solution.residual, residual, rtol=1e-10)
  want = jax.scipy.sparse.linalg.cg(lambda v: q.A @ v, b, maxiter=4, tol=0.0)
  np.testing.assert_allclose(solution.vector, want[0], rtol=1e-10)


def test_tolerance_ends_conjugate_gradient_early():
  q = quadratic()
  loose = implicit.conjugate_gradient(iterations=30, tolerance=1e-2)
  solution = loose(lambda v: q.A @ v, jnp.ones(N))
  assert solution.iterations < N
  assert solution.residual <= 1e-2


def test_conjugate_gradient_stops_at_negative_curvature():
  solve = implicit.conjugate_gradient(iterations=30)
  diagonal = jnp.array([2.0, 1.0, -3.0])
  solution = solve(lambda v: diagonal * v, jnp.array([1.0, 1.0, 1.0]))
  assert np.isfinite(solution.vector).all()
  assert solution.iterations == 1
  np.testing.assert_array_equal(solution.vector, 0)
  assert solution.residual == 1


@pytest.mark.parametrize(
  "solver",
  [
    implicit.conjugate_gradient(iterations=5),
    implicit.neumann(terms=5, step=0.1),
  ],
)
def test_a_zero_right_hand_side_has_the_solution_zero(solver):
  solution = solver(lambda v: 2 * v, jnp.zeros(3))
  np.testing.assert_array_equal(solution.vector, 0)
  assert solution.residual == 0


def test_damping_is_added_to_the_second_derivative():
  q = quadratic()
  solver = implicit.conjugate_gradient(iterations=40, tolerance=1e-13)
  got = _estimate(
    implicit.implicit(solver, damping=0.7), q.problem, q.optimum, q.adapter
  )
  at_upper = gradient(q.problem.upper)(q.optimum, q.adapter, None)
  v = jnp.linalg.solve(q.A + 0.7 * jnp.eye(N), at_upper.by_lower)
  mixed = jax.jacobian(jax.grad(lambda b, w: q.problem.lower(b, w, None)[0]), 1)
  want = at_upper.by_upper - v @ mixed(q.optimum, q.adapter)
  assert relative(got.gradient, want) < 1e-11


@pytest.mark.parametrize("terms", [0, 1, 4])
def test_neumann_is_an_unroll_of_one_more_step_from_the_optimum(terms):
  q = quadratic()
  optimizer = optax.sgd(q.step)
  series = implicit.implicit(implicit.neumann(terms=terms, step=q.step))
  steps = unrolled.unrolled(optimizer, steps=terms + 1)
  args = (q.problem, q.optimum, q.adapter)
  got = _estimate(series, *args)
  want = _estimate(steps, *args, optimizer.init(q.optimum))
  assert relative(got.gradient, want.gradient) < 1e-13
  assert got.diagnostics["iterations"] == terms


def test_one_step_is_an_unroll_of_one_step_from_the_optimum():
  q = quadratic()
  optimizer = optax.sgd(q.step)
  args = (q.problem, q.optimum, q.adapter)
  want = _estimate(
    unrolled.unrolled(optimizer, steps=1), *args, optimizer.init(q.optimum)
  )
  for step in (q.step, jnp.full(N, q.step)):
    got = _estimate(implicit.one_step(step), *args)
    assert relative(got.gradient, want.gradient) < 1e-13
  assert relative(got.gradient, q.hypergradient) > 0.01


@pytest.mark.parametrize(
  "make",
  [
    lambda mode: implicit.one_step(0.05, mixed_product=mode),
    lambda mode: unrolled.unrolled(
      optax.sgd(0.05), steps=3, mixed_product=mode
    ),
    lambda mode: implicit.implicit(
      implicit.conjugate_gradient(iterations=30, tolerance=1e-10),
      mixed_product=mode,
    ),
  ],
  ids=["one_step", "unrolled", "implicit"],
)
def test_finite_differences_are_exact_on_a_quadratic(make):
  q = quadratic()
  args = (q.problem, q.optimum, q.adapter, optax.sgd(0.05).init(q.optimum))
  exact = _estimate(make("exact"), *args)
  difference = _estimate(make("finite_difference"), *args)
  assert relative(difference.gradient, exact.gradient) < 1e-9


def test_finite_difference_of_a_zero_vector_is_zero():
  q = quadratic()
  second = mixed_mode.product(
    gradient(q.problem.lower),
    q.optimum,
    q.adapter,
    None,
    jnp.zeros(N),
    mixed_product="finite_difference",
  )
  np.testing.assert_array_equal(second.by_upper, np.zeros(M))


def test_error_of_the_penalty_falls_tenfold_with_its_complement():
  q = quadratic()
  errors = []
  for weight in (0.9, 0.99, 0.999):
    # Both bases at their optima; the joint one's solves a linear system.
    joint = jax.grad(
      lambda b, weight=weight: (
        (1 - weight) * q.problem.upper(b, q.adapter, None)[0]
        + weight * q.problem.lower(b, q.adapter, None)[0]
      )
    )
    hessian = (1 - weight) * q.C + weight * q.A
    base = -jnp.linalg.solve(hessian, joint(jnp.zeros(N)))
    terms = penalty.terms(q.problem, base, q.optimum, q.adapter, None, None)
    updates = penalty.combine(terms, weight)
    np.testing.assert_allclose(updates.lower, 0, atol=1e-12)
    errors.append(relative(updates.upper / (1 - weight), q.hypergradient))
  ratios = np.array(errors[:-1]) / np.array(errors[1:])
  np.testing.assert_allclose(ratios, 10, rtol=0.2)


@pytest.mark.parametrize("name", ["momentum", "clip_and_adam", "rmsprop"])
def test_no_nan_where_the_inner_gradient_is_exactly_zero(name):
  optimizer = OPTIMIZERS[name]
  base = {"first": jnp.ones(3), "rest": jnp.ones(2)}
  problem = Problem(
    upper=lambda b, w, x: (b["first"].sum() + b["rest"].sum() * w.sum(), {}),
    lower=lambda b, w, x: (0.0 * b["first"].sum() * w.sum(), {}),
  )
  got = _estimate(
    unrolled.unrolled(optimizer, steps=2),
    problem,
    base,
    jnp.ones(3),
    optimizer.init(base),
  )
  for leaf in jax.tree.leaves(got):
    assert np.isfinite(leaf).all()


@pytest.mark.parametrize(
  ("optimizer", "complaint"),
  [
    (optax.lion(1e-3), "no derivative"),
    (optax.sign_sgd(1e-3), "no derivative"),
    (optax.set_to_zero(), "no derivative"),
    (optax.adam(1e-3), "no finite derivative at a zero gradient"),
    (optax.clip_by_global_norm(1.0), "no finite derivative at a zero"),
  ],
)
def test_optimisers_without_a_derivative_are_refused_by_name(
  optimizer, complaint
):
  with pytest.raises(errors.ConfigError, match=f"optimizer.base.*{complaint}"):
    unrolled.check_differentiable(optimizer, "optimizer.base")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_with_a_derivative_are_accepted(name):
  example = {"first": jnp.ones((2, 2)), "rest": jnp.ones(2)}
  unrolled.check_differentiable(OPTIMIZERS[name], name, example)


def test_bad_settings_are_refused_with_the_value():
  with pytest.raises(errors.ConfigError, match="at least 1, got 0"):
    unrolled.unrolled(optax.sgd(1.0), steps=0)
  with pytest.raises(errors.ConfigError, match="at least 0, got -1"):
    implicit.implicit(implicit.scaled(1.0), damping=-1)
