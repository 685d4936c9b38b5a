"""BRIDGE's objective with the lower level's moves differentiated.

    J(x, y) = (1 - penalty) f(x, y) + penalty g(x, y)
    F(y) = J(U(y), y) - penalty g(V(y), y)

f is the upper objective, g the lower one, y are the upper variables. U is
`lower` moved by J, V is `lower_only` moved by g alone. The penalty form holds
both where they are; here their dependence on y counts. Each of the two terms
is an ordinary bilevel problem whose two levels are one objective,
so any estimator gives it. Source: Algorithm 2 of BRIDGE, arXiv 2509.06948; its
moves are held constant there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from bilevel_jax.bilevel import mixed_mode, penalty
from bilevel_jax.bilevel.problem import (
  Agreement,
  Estimator,
  Gradient,
  GradientFunction,
  Hypergradient,
  agreement,
)
from bilevel_jax.types import Tree


class JointAux(NamedTuple):
  """What the joint objective reports of the two that it is made of."""

  upper: Tree  # its aux
  lower: Tree
  upper_loss: jax.Array
  lower_loss: jax.Array
  agreement: Agreement  # of their gradients by the lower variables


class Cooperative(NamedTuple):
  """The derivative of F, and the two terms that it is made of."""

  gradient: Tree  # joint.gradient - penalty * lower_only.gradient
  direct: Tree  # the same of their direct parts: at fixed U and V
  implicit: Tree  # the same of their implicit parts: through the moves
  joint: Hypergradient  # of J through U; aux are JointAux
  lower_only: Hypergradient  # of g through V


def joint(
  upper_gradient: GradientFunction,
  lower_gradient: GradientFunction,
  weight: jax.typing.ArrayLike,
) -> GradientFunction:
  """Returns the gradient of (1 - weight) upper + weight lower.

  Its batch is the pair (upper_batch, lower_batch), its aux a JointAux.

  Args:
    weight: the penalty, in [0, 1].
  """

  def evaluate(lower: Tree, upper: Tree, batch: Any) -> Gradient:
    upper_batch, lower_batch = batch
    u = upper_gradient(lower, upper, upper_batch)
    v = lower_gradient(lower, upper, lower_batch)
    return Gradient(
      by_lower=penalty.mix(weight, u.by_lower, v.by_lower),
      by_upper=penalty.mix(weight, u.by_upper, v.by_upper),
      loss=penalty.mix(weight, u.loss, v.loss),
      aux=JointAux(
        u.aux, v.aux, u.loss, v.loss, agreement(u.by_lower, v.by_lower)
      ),
    )

  return evaluate


def cooperative(
  estimate: Estimator,
  lower_only_estimate: Estimator,
  upper_gradient: GradientFunction,
  lower_gradient: GradientFunction,
  lower: Tree,
  lower_only: Tree,
  upper: Tree,
  upper_batch: Any,
  lower_batch: Any,
  *,
  weight: jax.typing.ArrayLike,
  optimizer_state: Tree = None,
  lower_only_state: Tree = None,
  lower_only_batch: Callable[[Any, Tree], Any] = lambda batch, aux: batch,
) -> Cooperative:
  """Returns the derivative of F.

  Args:
    lower_only_estimate: the same for `lower_only`, with its own optimiser.
    lower_only: the copy now; `lower` itself for a copy rebuilt each step.
    optimizer_state: live state of lower's optimiser, a constant.
    lower_only_state: live state of lower_only's optimiser, a constant.
    lower_only_batch: (lower batch, lower aux of U's moves) -> the same batch
      as V needs it.
  """
  batches = (upper_batch, lower_batch)
  both = joint(upper_gradient, lower_gradient, weight)
  moved = estimate(both, both, lower, upper, batches, batches, optimizer_state)
  alone_batch = lower_only_batch(lower_batch, moved.lower_aux.lower)
  alone = lower_only_estimate(
    lower_gradient,
    lower_gradient,
    lower_only,
    upper,
    alone_batch,
    alone_batch,
    lower_only_state,
  )
  return Cooperative(
    **{
      part: penalty.excess(getattr(moved, part), weight, getattr(alone, part))
      for part in ("gradient", "direct", "implicit")
    },
    joint=moved,
    lower_only=alone,
  )


class FirstOrder(NamedTuple):
  """The derivative of F to first order in the step, and what it took."""

  gradient: Tree  # direct + implicit
  direct: Tree
  implicit: Tree
  of_upper: Gradient  # at `lower`
  of_lower: Gradient  # at `lower`


def first_order(
  upper_gradient: GradientFunction,
  lower_gradient: GradientFunction,
  lower: Tree,
  upper: Tree,
  upper_batch: Any,
  lower_batch: Any,
  *,
  weight: jax.typing.ArrayLike,
  optimizer: optax.GradientTransformation,
  optimizer_state: Tree,
  mixed_product: mixed_mode.MixedProduct = "exact",
) -> FirstOrder:
  """Returns the derivative of F, with one step from `lower`, to first order.

  With u, l the two gradients at `lower`, j = (1 - penalty) u + penalty l, and
  U = lower + step(j), V = lower + step(l), F is expanded to first order in the
  step, then differentiated:

      direct    (1 - penalty) du
      implicit  (1 - penalty) d2u r(j) + penalty d2l [r(j) - r(l)]
      r(g)      step(g) + step'(g)^T g

  d2u and d2l are the mixed second derivatives, du the gradient by the upper
  variables. U and V begin at `lower`, so l's own terms cancel and each
  objective needs one gradient and one product. r has two terms because a step
  changes F at both its ends: in where it arrives, and in the gradient that it
  follows. What is left out is of second order in the step, against `unrolled`
  with one step. For plain gradient descent r(g) is -2 lr g.

  Args:
    lower: lower-level variables, where U and V begin.
    optimizer: of the lower variables, in both moves.
    optimizer_state: its live state, a constant.
  """
  at_upper = upper_gradient(lower, upper, upper_batch)
  at_lower = lower_gradient(lower, upper, lower_batch)

  def reach(gradient: Tree) -> Tree:
    step, pull_back = jax.vjp(
      lambda g: optimizer.update(g, optimizer_state, lower)[0], gradient
    )
    return optax.tree.add(step, pull_back(gradient)[0])

  move = reach(penalty.mix(weight, at_upper.by_lower, at_lower.by_lower))
  apart = optax.tree.sub(move, reach(at_lower.by_lower))
  products = [
    mixed_mode.product(
      gradient, lower, upper, batch, vector, mixed_product=mixed_product
    ).by_upper
    for gradient, batch, vector in (
      (upper_gradient, upper_batch, move),
      (lower_gradient, lower_batch, apart),
    )
  ]
  direct = penalty.mix(weight, at_upper.by_upper, optax.tree.zeros_like(upper))
  implicit = penalty.mix(weight, *products)
  return FirstOrder(
    gradient=optax.tree.add(direct, implicit),
    direct=direct,
    implicit=implicit,
    of_upper=at_upper,
    of_lower=at_lower,
  )
