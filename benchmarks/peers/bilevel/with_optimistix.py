"""optimistix as a contestant of benchmarks/hypergradient_peers.py."""

import lineax
import optimistix

from benchmarks.peers.bilevel import jax_side


def make(request, upper, lower, step) -> jax_side.Estimate:
  """Returns jax.grad through its gradient descent."""
  solver = optimistix.GradientDescent(step, rtol=0.0, atol=0.0)
  if request["estimator"] == "unrolled":
    adjoint = optimistix.RecursiveCheckpointAdjoint()
  else:
    adjoint = optimistix.ImplicitAdjoint(
      lineax.CG(rtol=0.0, atol=0.0, max_steps=request["iterations"])
    )

  def minimise(b, w, data):
    return optimistix.minimise(
      lambda b, w: lower(b, w, data),
      solver,
      b,
      w,
      # Its first step evaluates the start and stays there.
      max_steps=request["inner_steps"] + 1,
      adjoint=adjoint,
      throw=False,
      tags=frozenset({lineax.positive_semidefinite_tag}),
    ).value

  return jax_side.through(minimise, upper)


if __name__ == "__main__":
  jax_side.serve("optimistix", make)
