"""jaxopt as a contestant of benchmarks/hypergradient_peers.py."""

import functools

import jaxopt

from benchmarks.peers.bilevel import jax_side


def make(request, upper, lower, step) -> jax_side.Estimate:
  """Returns jax.grad through its gradient descent."""

  def minimise(b, w, data):
    # The data are closed over: as arguments of `run` they would be part of
    # the loop's carry, and an unroll would keep a copy of them for each step.
    solver = jaxopt.GradientDescent(
      lambda b, w: lower(b, w, data),
      stepsize=step,
      acceleration=False,
      maxiter=request["inner_steps"],
      tol=0.0,
      implicit_diff=request["estimator"] != "unrolled",
      implicit_diff_solve=functools.partial(
        jaxopt.linear_solve.solve_cg, maxiter=request["iterations"], tol=0.0
      ),
    )
    return solver.run(b, w).params

  return jax_side.through(minimise, upper)


if __name__ == "__main__":
  jax_side.serve("jaxopt", make)
