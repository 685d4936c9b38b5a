"""BRIDGE's penalty form: three gradients, and no second derivative.

    min over x, y of  (1 - penalty) f(x, y) + penalty [ g(x, y) - g(x*(y), y) ]

f is the upper objective and g the lower one, x are the lower variables and y
the upper ones. The bracket is how far x is from the lower optimum x*, whose
place is taken by a second copy, `lower_only`, which g's gradient alone moves.
Minus the bracket is the cooperative gain: what training both losses jointly
earns on the lower one over training the lower one alone.
Source: BRIDGE, arXiv 2509.06948, algorithm 2; the value-function penalty is
that of BOME (arXiv 2209.08709) and F2SA (arXiv 2301.10945).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from bilevel_jax.bilevel.problem import (
  Gradient,
  GradientFunction,
  Objective,
  Problem,
  gradient,
)
from bilevel_jax.types import Array, Tree


class Terms(NamedTuple):
  """The three gradients of one step, all taken at the old parameters."""

  of_upper: Gradient  # of the upper objective, at (lower, upper)
  of_lower: Gradient  # of the lower objective, at (lower, upper)
  lower_only: Gradient  # of the lower objective, at (lower_only, upper)


class Updates(NamedTuple):
  """One gradient for each thing that moves, for one optimiser update each."""

  lower: Tree
  lower_only: Tree
  upper: Tree
  direct: Tree  # the part of upper's that the upper objective has
  gain: Tree  # the part of upper's that the cooperative gain has


def terms(
  problem: Problem,
  lower: Tree,
  lower_only: Tree,
  upper: Tree,
  upper_batch: Any,
  lower_batch: Any,
  *,
  gradient: Callable[[Objective], GradientFunction] = gradient,
  lower_only_batch: Callable[[Any, Tree], Any] = lambda batch, aux: batch,
  rebuild: Callable[[Gradient], Tree] | None = None,
) -> Terms:
  """Returns the gradients that `combine` weighs.

  The gradients are taken one after another, so that the activations of two
  are never in memory together.

  Args:
    lower: lower-level variables, moved by both objectives.
    lower_only: the copy of them that the lower gradient alone moves.
    upper: upper-level variables, of all three gradients.
    gradient: makes an objective's Gradient; an accumulating one may be given.
    lower_only_batch: (lower_batch, aux of the lower objective at `lower`) ->
      its batch at `lower_only`, which may need what was computed at `lower`.
    rebuild: lower Gradient -> `lower_only`, replacing the one given; for a
      copy that is made anew in each step (`one_update`).
  """
  of_lower = gradient(problem.lower)(lower, upper, lower_batch)
  if rebuild is not None:
    lower_only = rebuild(of_lower)
  shared = lower_only_batch(lower_batch, of_lower.aux)
  of_lower, lower_only = jax.lax.optimization_barrier((of_lower, lower_only))
  of_copy = gradient(problem.lower)(lower_only, upper, shared)
  of_copy, lower = jax.lax.optimization_barrier((of_copy, lower))
  of_upper = gradient(problem.upper)(lower, upper, upper_batch)
  return Terms(of_upper, of_lower, of_copy)


def combine(
  terms: Terms,
  penalty: jax.typing.ArrayLike,
  gain_weight: jax.typing.ArrayLike = 1.0,
) -> Updates:
  """Returns the gradients of the penalty objective, to be minimised.

      lower       (1 - penalty) df/dx + penalty dg/dx
      lower_only  dg/dx at lower_only
      upper       (1 - penalty) df/dy + penalty (dg/dy - dg/dy at lower_only)

  A term whose weight is exactly 0 is absent: not even an infinity in it
  counts. Where the gradients at `lower` and `lower_only` are equal, the gain's
  gradient is exactly 0.

  Args:
    penalty: scalar lambda in [0, 1].
    gain_weight: of the gain, beside `penalty`; 0 leaves the upper variables to
      the upper objective alone.
  """
  of_upper, of_lower, lower_only = terms
  # The cooperative gain is lower_only.loss - of_lower.loss; it is ascended.
  minus_gain = excess(of_lower.by_upper, 1, lower_only.by_upper)
  scaled = lambda weight, tree: jax.tree.map(lambda x: weigh(weight, x), tree)
  direct = scaled(1 - penalty, of_upper.by_upper)
  gain = scaled(penalty, scaled(gain_weight, minus_gain))
  return Updates(
    lower=mix(penalty, of_upper.by_lower, of_lower.by_lower),
    lower_only=lower_only.by_lower,
    upper=jax.tree.map(jnp.add, direct, gain),
    direct=direct,
    gain=gain,
  )


def mix(penalty: jax.typing.ArrayLike, upper: Tree, lower: Tree) -> Tree:
  """Returns (1 - penalty) upper + penalty lower, without terms of weight 0.

  Args:
    penalty: scalar lambda in [0, 1].
  """
  chex.assert_rank(penalty, 0)
  chex.assert_trees_all_equal_shapes(upper, lower)
  return jax.tree.map(
    lambda u, v: weigh(1 - penalty, u) + weigh(penalty, v), upper, lower
  )


def excess(x: Tree, weight: jax.typing.ArrayLike, y: Tree) -> Tree:
  """Returns x - weight y: exactly 0 where equal, just x where weight is 0.

  Args:
    weight: scalar.
  """

  chex.assert_trees_all_equal_shapes(x, y)

  # A compiler may fuse the product behind x into a multiply-add with -y, which
  # skips x's rounding: equal terms would then differ by a rounding error.
  def one(x, y):
    y = weigh(weight, y)
    return jnp.where(x == y, 0, x - y)

  return jax.tree.map(one, x, y)


def weigh(weight: jax.typing.ArrayLike, x: jax.Array) -> jax.Array:
  """Returns weight * x; exactly 0 where weight is, whatever x is.

  Args:
    weight: scalar.
    x: [...], any shape.
  """
  return jnp.where(weight == 0, 0, weight * x).astype(x.dtype)


def one_update(
  optimizer: optax.GradientTransformation, state: Tree, lower: Tree, grad: Tree
) -> Tree:
  """Returns `lower` after one update by `grad`: a copy for one step alone.

  Args:
    grad: gradient of the lower objective at `lower`.
  """
  updates, _ = optimizer.update(grad, state, lower)
  return optax.apply_updates(lower, updates)


def resync(
  lower: Tree, lower_only: Tree, updates: Array, *, every: int
) -> Tree:
  """Returns `lower` where `updates` is a multiple of `every`, else the other.

  Args:
    updates: [] int32, updates applied so far.
  """
  due = updates % every == 0
  return jax.tree.map(lambda b, r: jnp.where(due, b, r), lower, lower_only)
