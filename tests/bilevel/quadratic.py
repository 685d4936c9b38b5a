"""A quadratic bilevel problem, in float64, whose hypergradient is known.

lower = b'Ab / 2 - b'(Bw + c)
upper = (b - d)'C(b - d) / 2 + e'w + |w|^2 / 20
optimum b* = A^-1 (Bw + c)
hypergradient = e + w / 10 + B'A^-1 C(b* - d)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax.bilevel.problem import Problem

N, M = 12, 5


class Quadratic(NamedTuple):
  problem: Problem
  optimum: jax.Array  # b* at w
  adapter: jax.Array  # w
  hypergradient: jax.Array  # the closed form at w
  step: float  # 1 / the largest eigenvalue of A
  A: jax.Array
  C: jax.Array


def quadratic() -> Quadratic:
  """Returns the problem. Call it where 64-bit numbers are enabled."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
  positive = lambda R: R @ R.T / N + jnp.eye(N)
  A, C = positive(normal(N, N)), positive(normal(N, N))
  B, c, d, e, w = normal(N, M), normal(N), normal(N), normal(M), normal(M)
  G = normal(N, M)

  def lower(b, w, batch):
    # A batch shifts c: enough to tell the steps of an unroll apart.
    shift = 0.0 if batch is None else batch
    return b @ A @ b / 2 - b @ (B @ w + c + shift), {"base_sum": b.sum()}

  def upper(b, w, batch):
    del batch
    return (b - d) @ C @ (b - d) / 2 + b @ G @ w + e @ w + w @ w / 20, {}

  optimum = jnp.linalg.solve(A, B @ w + c)
  return Quadratic(
    problem=Problem(upper, lower),
    optimum=optimum,
    adapter=w,
    hypergradient=G.T @ optimum
    + e
    + w / 10
    + B.T @ jnp.linalg.solve(A, C @ (optimum - d) + G @ w),
    step=float(1 / jnp.linalg.eigvalsh(A)[-1]),
    A=A,
    C=C,
  )


def relative(got, want) -> float:
  """Returns the norm of the difference over that of `want`."""
  got, want = (
    np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    for tree in (got, want)
  )
  return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def central_difference(function, x: jax.Array, step: float = 1e-6):
  """Returns the gradient of `function` at the vector x by differences."""
  rows = step * jnp.eye(x.size)
  return jax.vmap(lambda r: (function(x + r) - function(x - r)) / (2 * step))(
    rows
  )
