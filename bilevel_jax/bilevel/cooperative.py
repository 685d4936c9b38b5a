"""BRIDGE's objective with the lower level's moves differentiated.

    J(base, adapter) = (1 - penalty) upper + penalty lower
    F(adapter) = J(U(adapter), adapter) - penalty lower(V(adapter), adapter)

U is `base` moved by J, V is `rl_only_base` moved by lower alone. The penalty
form holds both where they are; here their dependence on the adapter counts.
Each branch is an ordinary bilevel problem whose two levels are one objective,
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
  agreement: Agreement  # of their gradients by base


class Cooperative(NamedTuple):
  """The derivative of F, and the two branches that it is made of."""

  gradient: Tree  # joint.gradient - penalty * rl_only.gradient
  direct: Tree  # the same of their direct parts: at fixed bases
  implicit: Tree  # the same of their implicit parts: through the moves
  joint: Hypergradient  # of J through U; aux are JointAux
  rl_only: Hypergradient  # of lower through V


def joint(
  upper: GradientFunction,
  lower: GradientFunction,
  weight: jax.typing.ArrayLike,
) -> GradientFunction:
  """Returns the gradient of (1 - weight) upper + weight lower.

  Its batch is the pair (upper_batch, lower_batch), its aux a JointAux.

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
      aux=JointAux(u.aux, v.aux, u.loss, v.loss, agreement(u.base, v.base)),
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
    rl_only_estimate: the same for `rl_only_base`, with its own optimiser.
    upper: gradient of the upper objective.
    lower: gradient of the lower objective.
    rl_only_base: the copy now; `base` itself for a copy rebuilt each step.
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
    rl_only_batch(lower_batch, moved.lower_aux.lower),
    rl_only_batch(inner[1], moved.lower_aux.lower),
    rl_only_state,
  )
  return Cooperative(
    **{
      part: penalty.excess(getattr(moved, part), weight, getattr(alone, part))
      for part in ("gradient", "direct", "implicit")
    },
    joint=moved,
    rl_only=alone,
  )


class FirstOrder(NamedTuple):
  """The derivative of F to first order in the step, and what it took."""

  gradient: Tree  # direct + implicit
  direct: Tree
  implicit: Tree
  upper: Gradient  # at base
  lower: Gradient  # at base


def first_order(
  upper: GradientFunction,
  lower: GradientFunction,
  base: Tree,
  adapter: Tree,
  upper_batch: Any,
  lower_batch: Any,
  *,
  weight: jax.typing.ArrayLike,
  optimizer: optax.GradientTransformation,
  optimizer_state: Tree,
  mixed_product: mixed_mode.MixedProduct = "exact",
) -> FirstOrder:
  """Returns the derivative of F, with one step from `base`, to first order.

  With u, l the two gradients at `base`, j = (1 - penalty) u + penalty l, and
  U = base + step(j), V = base + step(l), F is expanded to first order in the
  step, then differentiated:

      direct    (1 - penalty) du
      implicit  (1 - penalty) d2u r(j) + penalty d2l [r(j) - r(l)]
      r(g)      step(g) + step'(g)^T g

  d2u and d2l are the mixed second derivatives, du the adapter's gradient. Both
  branches begin at `base`, so lower's own terms cancel and each objective
  needs one gradient and one product. r has two terms because a step changes F
  at both its ends: in where it arrives, and in the gradient that it follows.
  What is left out is of second order in the step, against `unrolled` with one
  step. For plain gradient descent r(g) is -2 lr g.

  Args:
    upper: gradient of the upper objective.
    lower: gradient of the lower objective.
    base: lower-level variables, of both branches.
    upper_batch: data of the upper objective.
    lower_batch: data of the lower objective.
    weight: the penalty, in [0, 1].
    optimizer: that moves base, in both branches.
    optimizer_state: its live state, a constant.
    mixed_product: how products with second derivatives are taken.
  """
  at_upper = upper(base, adapter, upper_batch)
  at_lower = lower(base, adapter, lower_batch)

  def reach(gradient: Tree) -> Tree:
    step, pull_back = jax.vjp(
      lambda g: optimizer.update(g, optimizer_state, base)[0], gradient
    )
    return optax.tree.add(step, pull_back(gradient)[0])

  move = reach(penalty.mix(weight, at_upper.base, at_lower.base))
  apart = optax.tree.sub(move, reach(at_lower.base))
  products = [
    mixed_mode.product(
      gradient, base, adapter, batch, vector, mixed_product=mixed_product
    ).adapter
    for gradient, batch, vector in (
      (upper, upper_batch, move),
      (lower, lower_batch, apart),
    )
  ]
  direct = penalty.mix(weight, at_upper.adapter, optax.tree.zeros_like(adapter))
  implicit = penalty.mix(weight, *products)
  return FirstOrder(
    gradient=optax.tree.add(direct, implicit),
    direct=direct,
    implicit=implicit,
    upper=at_upper,
    lower=at_lower,
  )
