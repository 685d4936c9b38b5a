"""Second derivatives times a vector, from a function that gives first ones.

Reverse mode over a gradient stores what both passes computed. The second
derivative is symmetric, so the same product is one forward derivative of the
gradient, which stores nothing: forward over reverse, "mixed mode".
Source: MixFlow-MG, arXiv 2505.00793.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.extend import core

from bilevel_jax.bilevel.problem import GradientFunction
from bilevel_jax.types import Tree

MixedProduct: TypeAlias = Literal["exact", "finite_difference"]

RELATIVE_STEP = 0.01
"""Length of a finite difference's step in the space of the lower variables."""


class Product(NamedTuple):
  """The second derivative of an objective, times a vector."""

  by_lower: Tree  # d2 / dx dx, times the vector
  by_upper: Tree  # d2 / dy dx, times the vector


def product(
  gradient: GradientFunction,
  lower: Tree,
  upper: Tree,
  batch: Any,
  vector: Tree,
  *,
  mixed_product: MixedProduct = "exact",
) -> Product:
  """Returns d/de of both gradients at lower + e * vector, at e = 0.

  `exact` is one jvp of the gradient. `finite_difference` is the central
  difference of two gradients at lower +- e * vector, e = 0.01 / norm(vector)
  (DARTS, arXiv 1806.09055): it needs no second derivative, so it works with
  any kernel, and float32 parameters, since the two differ in few bits.

  Args:
    lower: where the derivative is taken.
    upper: where the derivative is taken.
  """

  def both(lower: Tree) -> Product:
    at = gradient(lower, upper, batch)
    return Product(at.by_lower, at.by_upper)

  if mixed_product == "exact":
    return jax.jvp(both, (lower,), (vector,))[1]
  return central_difference(both, lower, vector)


def central_difference(
  function: Callable[[Tree], Tree], lower: Tree, vector: Tree
) -> Tree:
  """Returns d/de function(lower + e * vector) at e = 0, to O(e^2).

  From lower +- e * vector, e = 0.01 / norm(vector).
  """
  norm = optax.tree.norm(vector)
  # Along a zero vector any finite step gives the derivative, which is zero.
  step = RELATIVE_STEP / jnp.where(norm > 0, norm, 1)
  above = function(add_scaled(lower, step, vector))
  below = function(add_scaled(lower, -step, vector))
  return jax.tree.map(
    lambda x, y: ((x - y) / (2 * step)).astype(x.dtype), above, below
  )


def gradient_by_lower(
  gradient: GradientFunction, *, mixed_product: MixedProduct = "exact"
) -> Callable[[Tree, Tree, Any], tuple[Tree, Tree]]:
  """Returns (lower, upper, batch) -> (gradient of lower, (loss, aux)).

  Differentiable in lower and upper, once and in reverse, at the memory of
  one gradient. Loss and aux are reports: no derivative flows through them,
  nor into the batch.
  """

  def evaluate(lower, upper, batch):
    of, constants = _explicit(gradient, lower, upper, batch)
    primitive = _differentiable(of, mixed_product)
    return primitive(constants, lower, upper, batch)

  return evaluate


def _differentiable(
  of: Callable[[list[jax.Array]], GradientFunction],
  mixed_product: MixedProduct,
) -> Callable[..., tuple[Tree, Tree]]:
  @jax.custom_vjp
  def evaluate(constants, lower, upper, batch):
    at = of(constants)(lower, upper, batch)
    return at.by_lower, (at.loss, at.aux)

  def forward(*args):
    return evaluate(*args), args

  def backward(args, cotangents):
    constants, lower, upper, batch = args
    second = product(
      of(constants),
      lower,
      upper,
      batch,
      cotangents[0],
      mixed_product=mixed_product,
    )
    return None, second.by_lower, second.by_upper, None

  evaluate.defvjp(forward, backward)
  return evaluate


def _explicit(
  gradient: GradientFunction, *args: Tree
) -> tuple[Callable[[list[jax.Array]], GradientFunction], list[jax.Array]]:
  # A custom derivative may not close over values that are being traced, and
  # an objective may (a penalty, a batch): they become arguments.
  closed, shape = jax.make_jaxpr(gradient, return_shape=True)(*args)
  structure = jax.tree.structure(shape)

  def of(constants: list[jax.Array]) -> GradientFunction:
    function = core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, constants))
    return lambda *args: jax.tree.unflatten(
      structure, function(*jax.tree.leaves(args))
    )

  return of, closed.consts


def add_scaled(x: Tree, scale: jax.typing.ArrayLike, y: Tree) -> Tree:
  """Returns x + scale * y, in x's dtypes.

  Args:
    scale: scalar.
  """
  return jax.tree.map(lambda a, b: (a + scale * b).astype(a.dtype), x, y)


def scale(step: Tree, x: Tree) -> Tree:
  """Returns step * x, for a scalar step or a tree of them like x."""
  if jax.tree.structure(step) == jax.tree.structure(x):
    return optax.tree.mul(step, x)
  return optax.tree.scale(step, x)
