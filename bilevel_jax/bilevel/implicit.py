"""The hypergradient by the implicit function theorem.

Where x minimises the lower objective g(., y), its derivative by y is
-(d2g / dx2)^-1 d2g / dx dy, so that, for an upper objective f,

    v = (d2g / dx2 + damping)^-1 df / dx
    hypergradient = df / dy - (d2g / dy dx) v

Products with second derivatives only: no matrix is formed. True at the lower
optimum; away from it the error is of the order of the lower gradient, whose
norm is reported.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from bilevel_jax import errors
from bilevel_jax.bilevel import mixed_mode, problem
from bilevel_jax.bilevel.problem import (
  Estimator,
  GradientFunction,
  Hypergradient,
  hypergradient,
)
from bilevel_jax.types import Tree


class Solution(NamedTuple):
  """An approximate solution of H v = b."""

  vector: Tree
  residual: jax.Array  # norm(b - H v) / norm(b), 0 where b is 0
  iterations: jax.Array  # products with H


Solver: TypeAlias = Callable[[Callable[[Tree], Tree], Tree], Solution]
"""(v -> H v, b) -> Solution."""


def implicit(
  solver: Solver,
  *,
  damping: float = 0.0,
  mixed_product: mixed_mode.MixedProduct = "exact",
) -> Estimator:
  """Returns the estimator of the implicit function theorem.

  Args:
    damping: added to the lower level's second derivative.
    mixed_product: how products with second derivatives are taken.

  Raises:
    ConfigError: where `damping` is negative.
  """
  if damping < 0:
    raise errors.ConfigError(f"damping must be at least 0, got {damping}")

  def estimate(
    upper_gradient: GradientFunction,
    lower_gradient: GradientFunction,
    lower: Tree,
    upper: Tree,
    upper_batch: Any,
    lower_batch: Any,
    optimizer_state: Tree = None,
  ) -> Hypergradient:
    at_upper = upper_gradient(lower, upper, upper_batch)
    # Each term of BRIDGE's F has one objective for both levels.
    same = lower_gradient is upper_gradient and lower_batch is upper_batch
    at_lower = at_upper if same else lower_gradient(lower, upper, lower_batch)

    def second(vector):
      return mixed_mode.product(
        lower_gradient,
        lower,
        upper,
        lower_batch,
        vector,
        mixed_product=mixed_product,
      )

    def hessian(vector):
      return mixed_mode.add_scaled(second(vector).by_lower, damping, vector)

    solution = solver(hessian, at_upper.by_lower)
    return hypergradient(
      at_upper.by_upper,
      optax.tree.scale(-1, second(solution.vector).by_upper),
      lower=lower,
      optimizer_state=optimizer_state,
      upper=at_upper,
      lower_loss=at_lower.loss,
      lower_aux=at_lower.aux,
      lower_gradient_norm=optax.tree.norm(at_lower.by_lower),
      residual=solution.residual,
      iterations=solution.iterations,
    )

  return estimate


def one_step(
  step: Tree, *, mixed_product: mixed_mode.MixedProduct = "exact"
) -> Estimator:
  """Returns T1-T2: the inverse second derivative is taken to be `step`.

      df / dy - (d2g / dy dx) (step * df / dx)

  The derivative of one gradient step of length `step`, expanded at `lower`
  (Luketina et al., arXiv 1511.06727). One product, no solve; it leaves out
  how earlier steps depended on the upper variables.

  Args:
    step: learning rate of the lower level, or a tree of them like lower: a
      diagonal preconditioner, such as Adam's lr / (sqrt(nu) + eps) (SAMA,
      arXiv 2310.05674).
    mixed_product: how the product with second derivatives is taken.
  """
  return implicit(scaled(step), mixed_product=mixed_product)


def conjugate_gradient(*, iterations: int, tolerance: float = 1e-6) -> Solver:
  """Returns the method of conjugate gradients, for a positive definite H.

  Stops at the tolerance, at the last iteration, or before a direction along
  which H is not positive, where it would no longer approach the solution; the
  residual then says how far it came (more damping helps).

  Args:
    tolerance: relative residual that is good enough.
  """

  def solve(hessian: Callable[[Tree], Tree], b: Tree) -> Solution:
    square = problem.inner(b, b)

    def unfinished(carry):
      x, r, p, rr, count, positive = carry
      del x, r, p
      return positive & (rr > tolerance**2 * square) & (count < iterations)

    def iterate(carry):
      x, r, p, rr, count, _ = carry
      hp = hessian(p)
      curvature = problem.inner(p, hp)
      positive = curvature > 0
      alpha = jnp.where(positive, rr / jnp.where(positive, curvature, 1), 0)
      x = mixed_mode.add_scaled(x, alpha, p)
      r = mixed_mode.add_scaled(r, -alpha, hp)
      new_rr = problem.inner(r, r)
      p = mixed_mode.add_scaled(r, new_rr / rr, p)
      return x, r, p, new_rr, count + 1, positive

    start = (
      optax.tree.zeros_like(b),
      b,
      b,
      square,
      jnp.zeros((), jnp.int32),
      jnp.ones((), bool),
    )
    x, _, _, rr, count, _ = jax.lax.while_loop(unfinished, iterate, start)
    return Solution(x, _ratio(rr, square), count)

  return solve


def neumann(*, terms: int, step: float) -> Solver:
  """Returns the truncated Neumann series of the inverse.

      v = step * sum over k = 0 .. terms of (1 - step H)^k b

  With it the hypergradient is that of terms + 1 gradient steps of length
  `step` that begin at the lower optimum. It converges where step is less than
  2 over H's largest eigenvalue; a residual above 1 says that it does not. The
  residual is that of the sum without its last term: its own costs a product.
  """

  def solve(hessian: Callable[[Tree], Tree], b: Tree) -> Solution:
    def iterate(carry, _):
      power, total = carry
      power = mixed_mode.add_scaled(power, -step, hessian(power))
      return (power, optax.tree.add(total, power)), None

    (power, total), _ = jax.lax.scan(iterate, (b, b), None, length=terms)
    return Solution(
      optax.tree.scale(step, total),
      _ratio(problem.inner(power, power), problem.inner(b, b)),
      jnp.asarray(terms, jnp.int32),
    )

  return solve


def scaled(step: Tree) -> Solver:
  """Returns the solver that takes H to be 1 / step; see `one_step`."""

  def solve(hessian: Callable[[Tree], Tree], b: Tree) -> Solution:
    del hessian
    return Solution(
      mixed_mode.scale(step, b),
      jnp.full((), jnp.nan),  # Unknown: it would cost a product.
      jnp.zeros((), jnp.int32),
    )

  return solve


def _ratio(square: jax.typing.ArrayLike, reference: Any) -> jax.Array:
  positive = reference > 0
  return jnp.sqrt(
    jnp.where(positive, square / jnp.where(positive, reference, 1), 0)
  )
