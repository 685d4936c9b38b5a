"""A bilevel problem whose hypergradient is known in closed form."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax.bilevel.problem import Problem


class Quadratic(NamedTuple):
  """A problem with its lower optimum and its hypergradient there."""

  problem: Problem
  optimum: Callable[[float], jax.Array]  # of (1 - p) upper + p lower
  adapter: jax.Array
  hypergradient: jax.Array
  step: float


def make(size: int = 12, adapters: int = 5) -> Quadratic:
  """Returns lower = b'Ab/2 - b'Bw, upper = (b-d)'C(b-d)/2, in float64."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
  positive = lambda R: R @ R.T / size + jnp.eye(size)
  A, C = positive(normal(size, size)), positive(normal(size, size))
  B, d, w = normal(size, adapters), normal(size), normal(adapters)

  def optimum(weight):
    return jnp.linalg.solve(
      (1 - weight) * C + weight * A, (1 - weight) * C @ d + weight * B @ w
    )

  return Quadratic(
    problem=Problem(
      upper=lambda b, w, _: ((b - d) @ C @ (b - d) / 2, {}),
      lower=lambda b, w, _: (b @ A @ b / 2 - b @ B @ w, {}),
    ),
    optimum=optimum,
    adapter=w,
    hypergradient=B.T @ jnp.linalg.solve(A, C @ (optimum(1.0) - d)),
    step=float(1 / jnp.linalg.eigvalsh(A)[-1]),
  )
