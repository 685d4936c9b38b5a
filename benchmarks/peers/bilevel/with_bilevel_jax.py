"""Ours as a contestant of benchmarks/hypergradient_peers.py."""

import jax
import jax.numpy as jnp
import optax

from benchmarks.peers.bilevel import jax_side
from bilevel_jax.bilevel import implicit, penalty, problem, unrolled


def make(request, upper, lower, step) -> jax_side.Estimate:
  """Returns the estimator that a request names."""
  steps, iterations = request["inner_steps"], request["iterations"]
  of_upper, of_lower = (
    lambda b, w, data: (upper(b, w, data), None),
    lambda b, w, data: (lower(b, w, data), None),
  )
  gradients = problem.gradient(of_upper), problem.gradient(of_lower)
  sgd = optax.sgd(step)
  if request["estimator"] == "unrolled":
    through = unrolled.unrolled(sgd, steps=steps)

    def unroll(b, w, data):
      found = through(*gradients, b, w, data, data, sgd.init(b))
      return found.gradient, found.lower

    return unroll
  if request["estimator"] == "penalty":
    return _penalty(request["penalty"], of_upper, of_lower, sgd, steps)
  at_optimum = {
    "none": None,
    "one_step": implicit.one_step(step),
    "conjugate gradient": implicit.implicit(
      implicit.conjugate_gradient(iterations=iterations, tolerance=0.0)
    ),
    "neumann": implicit.implicit(implicit.neumann(terms=iterations, step=step)),
  }[request["estimator"]]

  def estimate(b, w, data):
    b = _descend(lambda b: jax.grad(lower)(b, w, data), sgd, steps, b)
    if at_optimum is None:
      return jnp.zeros_like(w), b
    return at_optimum(*gradients, b, w, data, data).gradient, b

  return estimate


def _descend(gradient, optimizer, steps, b):
  def one(carry, _):
    b, state = carry
    updates, state = optimizer.update(gradient(b), state, b)
    return (optax.apply_updates(b, updates), state), None

  start = b, optimizer.init(b)
  return jax.lax.scan(one, start, None, length=steps)[0][0]


def _penalty(weight, upper, lower, sgd, steps):
  """b of the lower loss alone comes first: it is the one that is tested."""

  def estimate(both, w, data):
    levels = problem.Problem(upper, lower)

    def one(both, _):
      alone, mixed = both
      found = penalty.terms(levels, mixed, alone, w, data, data)
      moves = penalty.combine(found, weight)
      step = lambda b, by: optax.apply_updates(
        b, sgd.update(by, sgd.init(b))[0]
      )
      return (step(alone, moves.lower_only), step(mixed, moves.lower)), None

    alone, mixed = jax.lax.scan(one, both, None, length=steps)[0]
    found = penalty.terms(levels, mixed, alone, w, data, data)
    upper_gradient = penalty.combine(found, weight).upper
    return upper_gradient / (1 - weight), (alone, mixed)

  return estimate


if __name__ == "__main__":
  jax_side.serve(
    "bilevel_jax",
    make,
    copies=lambda estimator: 2 if estimator == "penalty" else 1,
  )
