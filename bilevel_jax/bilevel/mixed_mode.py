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
"""Length of a finite difference's step in the space of `base`."""


class Product(NamedTuple):
  """The second derivative of an objective, times a vector."""

  base: Tree  # d2 / dbase dbase, times the vector
  adapter: Tree  # d2 / dadapter dbase, times the vector


def product(
  gradient: GradientFunction,
  base: Tree,
  adapter: Tree,
  batch: Any,
  vector: Tree,
  *,
  mixed_product: MixedProduct = "exact",
) -> Product:
  """Returns d/de of both gradients at base + e * vector, at e = 0.

  `exact` is one jvp of the gradient. `finite_difference` is the central
  difference of two gradients at base +- e * vector, e = 0.01 / norm(vector)
  (DARTS, arXiv 1806.09055): it needs no second derivative, so it works with
  any kernel, and float32 parameters, since the two differ in few bits.

  Args:
    base: where the derivative is taken.
    adapter: where the derivative is taken.
  """

  def both(base: Tree) -> Product:
    at = gradient(base, adapter, batch)
    return Product(at.base, at.adapter)

  if mixed_product == "exact":
    return jax.jvp(both, (base,), (vector,))[1]
  norm = optax.tree.norm(vector)
  # At a zero vector any finite step gives the product, which is zero.
  step = RELATIVE_STEP / jnp.where(norm > 0, norm, 1)
  above = both(add_scaled(base, step, vector))
  below = both(add_scaled(base, -step, vector))
  return jax.tree.map(
    lambda x, y: ((x - y) / (2 * step)).astype(x.dtype), above, below
  )


def base_gradient(
  gradient: GradientFunction, *, mixed_product: MixedProduct = "exact"
) -> Callable[[Tree, Tree, Any], tuple[Tree, Tree]]:
  """Returns (base, adapter, batch) -> (gradient of base, (loss, aux)).

  Differentiable in base and adapter, once and in reverse, at the memory of
  one gradient. Loss and aux are reports: no derivative flows through them,
  nor into the batch.

  Args:
    mixed_product: how the derivative's products are taken.
  """

  def evaluate(base, adapter, batch):
    of, constants = _explicit(gradient, base, adapter, batch)
    primitive = _differentiable(of, mixed_product)
    return primitive(constants, base, adapter, batch)

  return evaluate


def _differentiable(
  of: Callable[[list[jax.Array]], GradientFunction],
  mixed_product: MixedProduct,
) -> Callable[..., tuple[Tree, Tree]]:
  @jax.custom_vjp
  def evaluate(constants, base, adapter, batch):
    at = of(constants)(base, adapter, batch)
    return at.base, (at.loss, at.aux)

  def forward(*args):
    return evaluate(*args), args

  def backward(args, cotangents):
    constants, base, adapter, batch = args
    second = product(
      of(constants),
      base,
      adapter,
      batch,
      cotangents[0],
      mixed_product=mixed_product,
    )
    return None, second.base, second.adapter, None

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
