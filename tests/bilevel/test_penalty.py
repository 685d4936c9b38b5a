"""The penalty form's identities, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax.bilevel import penalty
from bilevel_jax.bilevel.problem import Gradient, Problem, gradient


def _objective(scale):
  def objective(base, adapter, batch):
    x, y = batch
    for layer in range(2):
      merged = base["w"][layer] + adapter["a"][layer] @ adapter["b"][layer]
      x = jnp.tanh(x @ merged) * base["s"][layer]
    return scale * jnp.mean((x - y) ** 2), {"mean": x.mean()}

  return objective


PROBLEM = Problem(upper=_objective(1.0), lower=_objective(3.0))


def _inputs():
  keys = jax.random.split(jax.random.key(0), 8)
  base = {
    "w": jax.random.normal(keys[0], (2, 8, 8)),
    "s": jax.random.normal(keys[1], (2, 1, 8)),
  }
  adapter = {
    "a": jax.random.normal(keys[2], (2, 8, 2)),
    "b": jax.random.normal(keys[3], (2, 2, 8)),
  }
  batches = [
    (
      jax.random.normal(keys[4 + i], (5, 8)),
      jax.random.normal(keys[6 + i], (5, 8)),
    )
    for i in range(2)
  ]
  return base, adapter, *batches


def _updates(base, rl_only_base, adapter, upper_batch, lower_batch, weight):
  terms = penalty.terms(
    PROBLEM, base, rl_only_base, adapter, upper_batch, lower_batch
  )
  return penalty.combine(terms, weight)


def test_adapter_gradient_is_zero_when_only_rl_counts_and_bases_agree():
  base, adapter, upper, lower = _inputs()
  updates = jax.jit(_updates)(base, base, adapter, upper, lower, 1.0)
  for leaf in jax.tree.leaves(updates.upper):
    np.testing.assert_array_equal(leaf, 0)


def test_fused_multiply_adds_leave_no_rounding_error_in_the_gain():
  def elementwise(base, adapter, batch):
    return jnp.sum(jnp.tanh(1.7 * batch * base * adapter) * base), {}

  problem = Problem(elementwise, elementwise)
  base, adapter, batch = jax.random.normal(jax.random.key(0), (3, 1000))

  @jax.jit
  def run(base, rl_only_base):
    terms = penalty.terms(problem, base, rl_only_base, adapter, batch, batch)
    return penalty.combine(terms, 1.0)

  np.testing.assert_array_equal(run(base, base.copy()).upper, 0)


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.75])
def test_gain_has_no_gradient_where_bases_agree(weight):
  base, adapter, upper, lower = _inputs()
  updates = jax.jit(_updates)(base, base, adapter, upper, lower, weight)
  alone = jax.jit(gradient(PROBLEM.upper))(base, adapter, upper)
  for got, want in zip(
    jax.tree.leaves(updates.upper),
    jax.tree.leaves(alone.by_upper),
    strict=True,
  ):
    np.testing.assert_array_equal(got, np.float32(1 - weight) * want)


def test_without_penalty_the_adapter_follows_the_upper_level_to_the_bit():
  base, adapter, upper, lower = _inputs()
  far = jax.tree.map(lambda x: x + 1e3, base)
  lower = jax.tree.map(lambda x: 1e15 * x, lower)
  updates = jax.jit(_updates)(base, far, adapter, upper, lower, 0.0)
  alone = jax.jit(gradient(PROBLEM.upper))(base, adapter, upper)
  jax.tree.map(np.testing.assert_array_equal, updates.upper, alone.by_upper)
  jax.tree.map(np.testing.assert_array_equal, updates.lower, alone.by_lower)


def test_without_the_gain_the_adapter_follows_the_upper_level_alone():
  base, adapter, upper, lower = _inputs()
  other = jax.tree.map(lambda x: 1.1 * x, base)
  terms = penalty.terms(PROBLEM, base, other, adapter, upper, lower)
  found = penalty.combine(terms, 0.3, 0.0)
  plain = penalty.combine(terms, 0.3)
  for got, term in zip(
    jax.tree.leaves(found.upper),
    jax.tree.leaves(terms.of_upper.by_upper),
    strict=True,
  ):
    np.testing.assert_allclose(got, 0.7 * term, rtol=1e-6)
  # Nothing else is touched.
  for got, term in zip(
    jax.tree.leaves((found.lower, found.lower_only)),
    jax.tree.leaves((plain.lower, plain.lower_only)),
    strict=True,
  ):
    np.testing.assert_array_equal(got, term)


def test_the_adapters_gradient_is_told_apart_into_what_it_is_made_of():
  base, adapter, upper, lower = _inputs()
  other = jax.tree.map(lambda x: 1.1 * x, base)
  terms = penalty.terms(PROBLEM, base, other, adapter, upper, lower)
  found = penalty.combine(terms, 0.3, 2.0)
  for name, moved in found.upper.items():
    direct = 0.7 * terms.of_upper.by_upper[name]
    gap = terms.of_lower.by_upper[name] - terms.lower_only.by_upper[name]
    np.testing.assert_allclose(found.direct[name], direct, rtol=1e-6)
    np.testing.assert_allclose(
      found.gain[name], 0.3 * 2.0 * gap, rtol=1e-5, atol=1e-7
    )
    np.testing.assert_array_equal(moved, found.direct[name] + found.gain[name])


@pytest.mark.parametrize("traced", [False, True])
def test_a_term_of_weight_zero_is_absent_even_if_infinite(traced):
  good = Gradient(jnp.ones(2), jnp.ones(2), jnp.ones(()), {})
  bad = Gradient(jnp.full(2, jnp.inf), jnp.full(2, jnp.nan), jnp.ones(()), {})
  combine = jax.jit(penalty.combine) if traced else penalty.combine
  updates = combine(penalty.Terms(good, bad, good), 0.0)
  np.testing.assert_array_equal(updates.lower, 1)
  np.testing.assert_array_equal(updates.upper, 1)
  updates = combine(penalty.Terms(bad, good, good), 1.0)
  np.testing.assert_array_equal(updates.lower, 1)
  np.testing.assert_array_equal(updates.upper, 0)


def test_gradients_are_those_of_the_penalty_objective():
  base, adapter, upper, lower = _inputs()
  rl_only = jax.tree.map(lambda x: 0.9 * x, base)

  def objective(base, adapter, rl_only, weight=0.3):
    return (1 - weight) * PROBLEM.upper(base, adapter, upper)[0] + weight * (
      PROBLEM.lower(base, adapter, lower)[0]
      - PROBLEM.lower(rl_only, adapter, lower)[0]
    )

  updates = _updates(base, rl_only, adapter, upper, lower, 0.3)
  base_grad, adapter_grad, rl_only_grad = jax.grad(objective, (0, 1, 2))(
    base, adapter, rl_only
  )
  close = lambda got, want: np.testing.assert_allclose(
    got, want, rtol=1e-5, atol=1e-6
  )
  jax.tree.map(close, updates.lower, base_grad)
  jax.tree.map(close, updates.upper, adapter_grad)
  # In the objective it enters with weight -0.3: it is minimised on its own.
  jax.tree.map(
    lambda x, y: close(-0.3 * x, y), updates.lower_only, rl_only_grad
  )


def test_lower_only_gradient_sees_what_the_lower_branch_computed():
  def lower(base, adapter, batch):
    return jnp.sum(base * adapter * batch), {"twice": 2 * base}

  ones = jnp.ones(3)
  terms = penalty.terms(
    Problem(lower, lower),
    ones,
    5 * ones,
    ones,
    ones,
    ones,
    lower_only_batch=lambda batch, aux: batch + aux["twice"],
  )
  np.testing.assert_array_equal(terms.of_lower.by_lower, 1)
  np.testing.assert_array_equal(terms.lower_only.by_lower, 3)
  np.testing.assert_array_equal(terms.lower_only.by_upper, 15)


def test_one_step_rebuilds_the_rl_only_base_from_the_base():
  base, adapter, upper, lower = _inputs()
  optimizer = optax.adam(1e-2)
  state = optimizer.init(base)
  terms = penalty.terms(
    PROBLEM,
    base,
    None,
    adapter,
    upper,
    lower,
    rebuild=lambda g: penalty.one_update(optimizer, state, base, g.by_lower),
  )
  moved = penalty.one_update(
    optimizer,
    state,
    base,
    gradient(PROBLEM.lower)(base, adapter, lower).by_lower,
  )
  want = gradient(PROBLEM.lower)(moved, adapter, lower)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    terms.lower_only,
    want,
  )


def test_resync_copies_the_base_on_schedule():
  base, old = {"x": jnp.ones(2)}, {"x": jnp.zeros(2)}
  for updates, copied in ((0, 1), (1, 0), (2, 0), (3, 1)):
    got = penalty.resync(base, old, jnp.asarray(updates), every=3)
    np.testing.assert_array_equal(got["x"], copied)
