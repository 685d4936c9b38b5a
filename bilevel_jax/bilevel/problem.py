"""A bilevel problem as two functions of (lower, upper, batch).

    min over y of  f(x*(y), y)   where x*(y) minimises  g(x, y)  over x

x are the lower level's variables, y the upper level's. In this package `lower`
and `upper` are variables where they are arguments, and objectives (g, f) where
they are a Problem's fields. Variables are any pytrees, and a batch is whatever
the two objectives understand. For BRIDGE (arXiv 2509.06948), f is the SFT loss
(-J_SFT) and g the RL loss (-J_RL).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from bilevel_jax.types import Tree

Objective: TypeAlias = Callable[[Tree, Tree, Any], tuple[jax.Array, Tree]]
"""(lower, upper, batch) -> (loss, aux); the loss is a scalar, minimised."""


class Problem(NamedTuple):
  """The two levels of a bilevel problem."""

  upper: Objective
  lower: Objective


class Gradient(NamedTuple):
  """A loss with its derivatives with respect to both levels' variables."""

  by_lower: Tree
  by_upper: Tree
  loss: jax.Array
  aux: Tree


GradientFunction: TypeAlias = Callable[[Tree, Tree, Any], Gradient]
"""(lower, upper, batch) -> Gradient."""


def gradient(objective: Objective) -> GradientFunction:
  """Returns the function that gives `objective`'s loss and both derivatives.

  One backward pass gives both. A caller that splits batches into micro-batches
  hands the estimators its own function of this signature instead.

  Args:
    objective: function of (lower, upper, batch).
  """
  differentiated = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)

  def evaluate(lower: Tree, upper: Tree, batch: Any) -> Gradient:
    (loss, aux), (by_lower, by_upper) = differentiated(lower, upper, batch)
    return Gradient(by_lower, by_upper, loss, aux)

  return evaluate


class Agreement(NamedTuple):
  """How far two gradients of one tree pull together."""

  upper_norm: jax.Array
  lower_norm: jax.Array
  cosine: jax.Array  # 0 where one of the norms is


def inner(x: Tree, y: Tree) -> jax.Array:
  """Returns <x, y>, the sum of products over two trees of one structure.

  jnp.vdot would flatten each array first, and so gather one that is split
  over devices on every one of them.
  """
  chex.assert_trees_all_equal_shapes(x, y)
  products = jax.tree.map(lambda a, b: jnp.sum(a * b), x, y)
  return jnp.asarray(optax.tree.sum(products))


def agreement(upper: Tree, lower: Tree) -> Agreement:
  """Returns the norms of two gradients and the cosine between them."""
  norms = optax.tree.norm(upper), optax.tree.norm(lower)
  product = norms[0] * norms[1]
  cosine = jnp.where(
    product > 0, inner(upper, lower) / jnp.where(product > 0, product, 1), 0
  )
  return Agreement(*norms, cosine)


class Hypergradient(NamedTuple):
  """The derivative of f(x(y), y) by y, and its parts.

  gradient = direct + implicit
  """

  gradient: Tree
  direct: Tree  # at a fixed x
  implicit: Tree  # through x's dependence on y
  lower: Tree  # where the lower level is: moved, if the estimator moves it
  optimizer_state: Tree  # of the lower level, there
  upper: Gradient  # of the upper objective, there
  lower_loss: jax.Array  # before the move: [K] of each inner step, else []
  lower_aux: Tree  # like it, of the lower objective
  diagnostics: dict[str, jax.Array]  # scalars, for logs


class Estimator(Protocol):
  """What all hypergradients have in common."""

  def __call__(
    self,
    upper_gradient: GradientFunction,
    lower_gradient: GradientFunction,
    lower: Tree,
    upper: Tree,
    upper_batch: Any,
    lower_batch: Any,
    optimizer_state: Tree = None,
  ) -> Hypergradient:
    """Returns the hypergradient of the upper objective at `upper`.

    Args:
      upper_gradient: gradient of the objective to differentiate.
      lower_gradient: gradient of the objective that lower minimises.
      optimizer_state: live state of the lower level's optimiser, a constant;
        only `unrolled` reads it.
    """
    ...


def hypergradient(
  direct: Tree,
  implicit: Tree,
  *,
  lower: Tree,
  optimizer_state: Tree,
  upper: Gradient,
  lower_loss: jax.Array,
  lower_aux: Tree,
  **diagnostics: jax.Array,
) -> Hypergradient:
  """Returns the Hypergradient of two parts, with their norms.

  Args:
    lower: where the lower level's variables ended.
    optimizer_state: of the lower level there.
    lower_loss: scalar.
    lower_aux: what the lower objective returned beside its loss.
    **diagnostics: [], scalars to log beside the parts' norms.
  """
  chex.assert_trees_all_equal_shapes(direct, implicit)
  return Hypergradient(
    gradient=optax.tree.add(direct, implicit),
    direct=direct,
    implicit=implicit,
    lower=lower,
    optimizer_state=optimizer_state,
    upper=upper,
    lower_loss=lower_loss,
    lower_aux=lower_aux,
    diagnostics={
      "direct_norm": optax.tree.norm(direct),
      "implicit_norm": optax.tree.norm(implicit),
      **diagnostics,
    },
  )
