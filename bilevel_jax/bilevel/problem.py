"""A bilevel problem as two functions of (base, adapter, batch).

    min over adapter of  upper(base*(adapter), adapter)
    where base*(adapter) minimises  lower(base, adapter)  over base

`base` are the lower level's variables and `adapter` the upper level's; both
are any pytrees, and a batch is whatever the two objectives understand. For
BRIDGE, upper is the SFT loss (-J_SFT) and lower the RL loss (-J_RL).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

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
