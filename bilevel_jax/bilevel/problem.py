"""A bilevel problem as two functions of (base, adapter, batch).

    min over adapter of  upper(base*(adapter), adapter)
    where base*(adapter) minimises  lower(base, adapter)  over base

`base` are the lower level's variables and `adapter` the upper level's; both
are any pytrees, and a batch is whatever the two objectives understand. For
BRIDGE (arXiv 2509.06948), upper is the SFT loss (-J_SFT) and lower the RL loss
(-J_RL).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax

from bilevel_jax.types import Tree

Objective: TypeAlias = Callable[[Tree, Tree, Any], tuple[jax.Array, Tree]]
"""(base, adapter, batch) -> (loss, aux); the loss is a scalar, minimised."""


class Problem(NamedTuple):
  """The two levels of a bilevel problem."""

  upper: Objective
  lower: Objective


class Gradient(NamedTuple):
  """A loss with its derivatives with respect to both levels' variables."""

  base: Tree
  adapter: Tree
  loss: jax.Array
  aux: Tree


GradientFunction: TypeAlias = Callable[[Tree, Tree, Any], Gradient]
"""(base, adapter, batch) -> Gradient."""


def gradient(objective: Objective) -> GradientFunction:
  """Returns the function that gives `objective`'s loss and both derivatives.

  One backward pass gives both. A caller that splits batches into micro-batches
  hands the estimators its own function of this signature instead.

  Args:
    objective: function of (base, adapter, batch).
  """
  differentiated = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)

  def evaluate(base: Tree, adapter: Tree, batch: Any) -> Gradient:
    (loss, aux), (base_grad, adapter_grad) = differentiated(
      base, adapter, batch
    )
    return Gradient(base_grad, adapter_grad, loss, aux)

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
  """The derivative of upper(base(adapter), adapter) by adapter, and its parts.

  gradient = direct + implicit
  """

  gradient: Tree
  direct: Tree  # at a fixed base
  implicit: Tree  # through base's dependence on adapter
  base: Tree  # where the lower level is: moved, if the estimator moves it
  optimizer_state: Tree  # of the lower level, there
  upper: Gradient  # of the upper objective, there
  lower_loss: jax.Array  # before the move: [K] of each inner step, else []
  lower_aux: Tree  # like it, of the lower objective
  diagnostics: dict[str, jax.Array]  # scalars, for logs


class Estimator(Protocol):
  """What all hypergradients have in common."""

  def __call__(
    self,
    upper: GradientFunction,
    lower: GradientFunction,
    base: Tree,
    adapter: Tree,
    upper_batch: Any,
    lower_batch: Any,
    optimizer_state: Tree = None,
  ) -> Hypergradient:
    """Returns the hypergradient of `upper` at `adapter`.

    Args:
      upper: gradient of the objective to differentiate.
      lower: gradient of the objective that base minimises.
      upper_batch: data of the upper objective.
      lower_batch: data of the lower objective.
      optimizer_state: live state of the lower level's optimiser, a constant;
        only `unrolled` reads it.
    """
    ...


def hypergradient(
  direct: Tree,
  implicit: Tree,
  *,
  base: Tree,
  optimizer_state: Tree,
  upper: Gradient,
  lower_loss: jax.Array,
  lower_aux: Tree,
  **diagnostics: jax.Array,
) -> Hypergradient:
  """Returns the Hypergradient of two parts, with their norms.

  Args:
    base: where the lower level's variables ended.
    optimizer_state: of the lower level there.
    lower_loss: scalar.
    lower_aux: what the lower objective returned beside its loss.
    **diagnostics: [], scalars to log beside the parts' norms.
  """
  return Hypergradient(
    gradient=optax.tree.add(direct, implicit),
    direct=direct,
    implicit=implicit,
    base=base,
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
