"""BRIDGE's objective with the lower level's moves differentiated.

    J(base, adapter) = (1 - penalty) upper + penalty lower
    F(adapter) = J(U(adapter), adapter) - penalty lower(V(adapter), adapter)

U is `base` moved by J, V is `rl_only_base` moved by lower alone. The penalty
form holds both where they are; here their dependence on the adapter counts.
Each branch is an ordinary bilevel problem whose two levels are one objective,
so any estimator gives it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from bilevel_jax.bilevel import mixed_mode, penalty
from bilevel_jax.bilevel.problem import (
  Estimator,
  Gradient,
  GradientFunction,
  Hypergradient,
  hypergradient,
)
from bilevel_jax.types import Tree


class Cooperative(NamedTuple):
  """The derivative of F, and the two branches that it is made of."""

  gradient: Tree  # joint.gradient - penalty * rl_only.gradient
  joint: Hypergradient  # of J through U; aux are pairs (upper's, lower's)
  rl_only: Hypergradient  # of lower through V


def joint(
  upper: GradientFunction,
  lower: GradientFunction,
  weight: jax.typing.ArrayLike,
) -> GradientFunction:
  """Returns the gradient of (1 - weight) upper + weight lower.

  Its batch is the pair (upper_batch, lower_batch), and so is its aux.

  Args:
    upper: gradient of the upper objective.
    lower: gradient of the lower objective.
    weight: the penalty, in [0, 1].
  """

  def evaluate(base: Tree, adapter: Tree, batch: Any) -> Gradient:
    upper_batch, lower_batch = batch
    u = upper(base, adapter, upper_batch)
    v = lower(base, adapter, lower_batch)
    return Gradient(
      base=penalty.mix(weight, u.base, v.base),
      adapter=penalty.mix(weight, u.adapter, v.adapter),
      loss=penalty.mix(weight, u.loss, v.loss),
      aux=(u.aux, v.aux),
    )

  return evaluate


def cooperative(
  estimate: Estimator,
  rl_only_estimate: Estimator,
  upper: GradientFunction,
  lower: GradientFunction,
  base: Tree,
  rl_only_base: Tree,
  adapter: Tree,
  upper_batch: Any,
  lower_batch: Any,
  *,
  weight: jax.typing.ArrayLike,
  optimizer_state: Tree = None,
  rl_only_state: Tree = None,
  inner_batches: tuple[Any, Any] | None = None,
  rl_only_batch: Callable[[Any, Tree], Any] = lambda batch, aux: batch,
) -> Cooperative:
  """Returns the derivative of F by the adapter.

  Args:
    estimate: moves and differentiates `base`.
    rl_only_estimate: the same for `rl_only_base`, with its own optimiser.
    upper: gradient of the upper objective.
    lower: gradient of the lower objective.
    base: lower-level variables now.
    rl_only_base: the copy now; `base` itself for a copy rebuilt each step.
    adapter: upper-level variables.
    upper_batch: data of the upper objective.
    lower_batch: data of the lower objective.
    weight: the penalty, in [0, 1].
    optimizer_state: live state of base's optimiser, a constant.
    rl_only_state: live state of rl_only_base's optimiser, a constant.
    inner_batches: (upper, lower) data of the moves, where it is not that of
      the objectives: [K, ...] for an estimator with a batch per step.
    rl_only_batch: (lower batch, lower aux of the joint branch's moves) -> the
      same batch as the RL-only branch needs it.
  """
  outer = (upper_batch, lower_batch)
  inner = outer if inner_batches is None else inner_batches
  both = joint(upper, lower, weight)
  moved = estimate(both, both, base, adapter, outer, inner, optimizer_state)
  alone = rl_only_estimate(
    lower,
    lower,
    rl_only_base,
    adapter,
    rl_only_batch(lower_batch, moved.lower_aux[1]),
    rl_only_batch(inner[1], moved.lower_aux[1]),
    rl_only_state,
  )
  return Cooperative(
    gradient=penalty.excess(moved.gradient, weight, alone.gradient),
    joint=moved,
    rl_only=alone,
  )


def first_order(
  upper: GradientFunction,
  lower: GradientFunction,
  base: Tree,
  adapter: Tree,
  upper_batch: Any,
  lower_batch: Any,
  *,
  weight: jax.typing.ArrayLike,
  step: Tree,
  mixed_product: mixed_mode.MixedProduct = "exact",
) -> Hypergradient:
  """Returns the derivative of F, with one step from `base`, to first order.

  With u, l the two gradients at `base`, s the step and U = base - s J_base,
  V = base - s l, F is expanded to first order in s, then differentiated:

      direct    (1 - penalty) du
      implicit  -2 [ (1 - penalty) d2u s (u + penalty (l - u))
                     + penalty d2l s (1 - penalty) (u - l) ]

  d2u and d2l are the mixed second derivatives, du the adapter's gradient. Both
  branches begin at `base`, so lower's own terms cancel and each objective
  needs one gradient and one product. What is left out is of second order in
  the step, against the unroll of one step of plain gradient descent. The 2 is
  there because a step changes F at both its ends: in where it arrives, and in
  the gradient that it follows.

  Args:
    upper: gradient of the upper objective.
    lower: gradient of the lower objective.
    base: lower-level variables, of both branches.
    adapter: upper-level variables.
    upper_batch: data of the upper objective.
    lower_batch: data of the lower objective.
    weight: the penalty, in [0, 1].
    step: learning rate of base, or a tree of them like base (a
      preconditioner), a constant.
    mixed_product: how products with second derivatives are taken.
  """
  at_upper = upper(base, adapter, upper_batch)
  at_lower = lower(base, adapter, lower_batch)
  zeros = optax.tree.zeros_like(base)
  move = mixed_mode.scale(
    step, penalty.mix(weight, at_upper.base, at_lower.base)
  )
  # J's move minus the RL-only one: (1 - penalty) (u - l), as weighed terms.
  apart = mixed_mode.scale(
    step,
    penalty.mix(weight, optax.tree.sub(at_upper.base, at_lower.base), zeros),
  )
  products = [
    mixed_mode.product(
      gradient, base, adapter, batch, vector, mixed_product=mixed_product
    ).adapter
    for gradient, batch, vector in (
      (upper, upper_batch, move),
      (lower, lower_batch, apart),
    )
  ]
  return hypergradient(
    penalty.mix(weight, at_upper.adapter, optax.tree.zeros_like(adapter)),
    optax.tree.scale(-2, penalty.mix(weight, *products)),
    base=base,
    optimizer_state=None,
    upper=at_upper,
    lower_loss=at_lower.loss,
    lower_aux=at_lower.aux,
  )
