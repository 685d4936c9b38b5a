"""BRIDGE's penalty form: three gradients, and no second derivative.

    min over base, adapter of
      (1 - penalty) upper(base, adapter)
      + penalty [ lower(base, adapter) - lower(base*(adapter), adapter) ]

The bracket is how far `base` is from the lower optimum base*, whose place is
taken by a second copy, `rl_only_base`, which the lower gradient alone moves.
Minus the bracket is the cooperative gain: what training both losses jointly
earns on the lower one over training the lower one alone.
Source: BRIDGE, arXiv 2509.06948, algorithm 2; the value-function penalty is
that of BOME (arXiv 2209.08709) and F2SA (arXiv 2301.10945).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

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

  upper: Gradient  # of upper at (base, adapter)
  lower: Gradient  # of lower at (base, adapter)
  rl_only: Gradient  # of lower at (rl_only_base, adapter)


class Updates(NamedTuple):
  """One gradient for each thing that moves, for one optimiser update each."""

  base: Tree
  rl_only_base: Tree
  adapter: Tree
  direct: Tree  # the part of the adapter's that the upper objective has
  gain: Tree  # the part of the adapter's that the cooperative gain has


def terms(
  problem: Problem,
  base: Tree,
  rl_only_base: Tree,
  adapter: Tree,
  upper_batch: Any,
  lower_batch: Any,
  *,
  gradient: Callable[[Objective], GradientFunction] = gradient,
  rl_only_batch: Callable[[Any, Tree], Any] = lambda batch, aux: batch,
  rebuild: Callable[[Gradient], Tree] | None = None,
) -> Terms:
  """Returns the gradients that `combine` weighs.

  The branches are evaluated one after another, so that the activations of two
  are never in memory together.

  Args:
    rl_only_base: the copy that the lower gradient alone moves.
    adapter: upper-level variables, shared by all three branches.
    upper_batch: data of the upper objective.
    lower_batch: data of the lower objective.
    gradient: makes an objective's Gradient; an accumulating one may be given.
    rl_only_batch: (lower_batch, aux of the lower branch) -> the batch of the
      RL-only branch, which may need what the lower branch computed.
    rebuild: lower Gradient -> `rl_only_base`, replacing the one given; for a
      copy that is made anew in each step (`one_step`).
  """
  lower = gradient(problem.lower)(base, adapter, lower_batch)
  if rebuild is not None:
    rl_only_base = rebuild(lower)
  shared = rl_only_batch(lower_batch, lower.aux)
  lower, rl_only_base = jax.lax.optimization_barrier((lower, rl_only_base))
  rl_only = gradient(problem.lower)(rl_only_base, adapter, shared)
  rl_only, base = jax.lax.optimization_barrier((rl_only, base))
  upper = gradient(problem.upper)(base, adapter, upper_batch)
  return Terms(upper, lower, rl_only)


def combine(
  terms: Terms,
  penalty: jax.typing.ArrayLike,
  gain_weight: jax.typing.ArrayLike = 1.0,
) -> Updates:
  """Returns the gradients of the penalty objective, to be minimised.

      base          (1 - penalty) upper_base + penalty lower_base
      rl_only_base  lower_base at rl_only_base
      adapter       (1 - penalty) upper_adapter
                    + penalty (lower_adapter - lower_adapter at rl_only_base)

  A term whose weight is exactly 0 is absent: not even an infinity in it
  counts. Where the gradients at `base` and `rl_only_base` are equal, the gain's
  gradient is exactly 0.

  Args:
    penalty: scalar lambda in [0, 1].
    gain_weight: of the gain, beside `penalty`; 0 leaves the adapter to the
      upper objective alone.
  """
  upper, lower, rl_only = terms
  # The cooperative gain is rl_only.loss - lower.loss; it is ascended.
  minus_gain = excess(lower.adapter, 1, rl_only.adapter)
  scaled = lambda weight, tree: jax.tree.map(lambda x: weigh(weight, x), tree)
  direct = scaled(1 - penalty, upper.adapter)
  gain = scaled(penalty, scaled(gain_weight, minus_gain))
  return Updates(
    base=mix(penalty, upper.base, lower.base),
    rl_only_base=rl_only.base,
    adapter=jax.tree.map(jnp.add, direct, gain),
    direct=direct,
    gain=gain,
  )


def mix(penalty: jax.typing.ArrayLike, upper: Tree, lower: Tree) -> Tree:
  """Returns (1 - penalty) upper + penalty lower, without terms of weight 0.

  Args:
    penalty: scalar lambda in [0, 1].
  """
  return jax.tree.map(
    lambda u, v: weigh(1 - penalty, u) + weigh(penalty, v), upper, lower
  )


def excess(x: Tree, weight: jax.typing.ArrayLike, y: Tree) -> Tree:
  """Returns x - weight y: exactly 0 where equal, just x where weight is 0.

  Args:
    weight: scalar.
  """

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


def one_step(
  optimizer: optax.GradientTransformation, state: Tree, base: Tree, grad: Tree
) -> Tree:
  """Returns the RL-only base: `base` after one update by `grad`.

  The life of an RL-only base that is rebuilt in every step.

  Args:
    grad: gradient of the lower objective at `base`.
  """
  updates, _ = optimizer.update(grad, state, base)
  return optax.apply_updates(base, updates)


def resync(
  base: Tree, rl_only_base: Tree, updates: Array, *, every: int
) -> Tree:
  """Returns `base` where `updates` is a multiple of `every`, else the other.

  Args:
    updates: [] int32, updates applied so far.
  """
  due = updates % every == 0
  return jax.tree.map(lambda b, r: jnp.where(due, b, r), base, rl_only_base)
