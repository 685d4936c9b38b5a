"""The hypergradient through K optimiser steps of the lower level.

    x_{k+1} = x_k - update(dg/dx (x_k, y, batch_k))
    hypergradient = d f(x_K(y), y) / dy

f is the upper objective, g the lower one. Exact for what it says: the
derivative of K steps from a constant start, with clipping, moments and
schedules of the optimiser included. It is not the derivative of the lower
level's optimum, to which it tends as K grows. Source: Franceschi et al.,
Forward and Reverse Gradient-Based Hyperparameter Optimization, arXiv
1703.01785; with the products of MixFlow-MG, 2505.00793.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bilevel_jax import errors
from bilevel_jax.bilevel import mixed_mode
from bilevel_jax.bilevel.problem import (
  Estimator,
  GradientFunction,
  Hypergradient,
  hypergradient,
)
from bilevel_jax.types import Tree


def unrolled(
  optimizer: optax.GradientTransformation,
  *,
  steps: int,
  mixed_product: mixed_mode.MixedProduct = "exact",
) -> Estimator:
  """Returns the estimator that differentiates through `steps` updates.

  The optimiser's state enters as it is now, a constant. A fresh one would be
  wrong for a run that is under way: Adam's first step is a sign, whose
  derivative has nothing to do with that of a later step.

  Memory: one copy of lower and of the optimiser's state a step, and the
  activations of one gradient. Every step is computed again on the way back.

  Args:
    optimizer: of the lower level, differentiable (`check_differentiable`).
    mixed_product: how products with second derivatives are taken.

  Raises:
    ConfigError: where `steps` is less than 1.
  """
  if steps < 1:
    raise errors.ConfigError(f"steps must be at least 1, got {steps}")

  def estimate(
    upper_gradient: GradientFunction,
    lower_gradient: GradientFunction,
    lower: Tree,
    upper: Tree,
    upper_batch: Any,
    lower_batch: Any,
    optimizer_state: Tree = None,
  ) -> Hypergradient:
    inner_gradient = mixed_mode.gradient_by_lower(
      lower_gradient, mixed_product=mixed_product
    )

    def descend(upper):
      def step(carry, _):
        lower, state = carry
        grad, report = inner_gradient(lower, upper, lower_batch)
        updates, state = optimizer.update(grad, state, lower)
        return (optax.apply_updates(lower, updates), state), report

      (final, state), reports = jax.lax.scan(
        # A scan's two passes are separate loops: there is nothing that the
        # barriers of a checkpoint would have to keep from being merged.
        jax.checkpoint(step, prevent_cse=False),
        (lower, optimizer_state),
        length=steps,
      )
      return final, (state, reports)

    final, pull_back, (state, reports) = jax.vjp(descend, upper, has_aux=True)
    at_end = upper_gradient(final, upper, upper_batch)
    (implicit,) = pull_back(at_end.by_lower)
    return hypergradient(
      at_end.by_upper,
      implicit,
      lower=final,
      optimizer_state=state,
      upper=at_end,
      lower_loss=reports[0],
      lower_aux=reports[1],
    )

  return estimate


def check_differentiable(
  optimizer: optax.GradientTransformation,
  name: str,
  example: Tree | None = None,
) -> None:
  """Checks that updates can be differentiated with respect to gradients.

  Tries it, on a fresh state, at a random gradient and at zero (which a batch
  of equal rewards gives).

  Args:
    example: small tree of parameters that it accepts; a matrix and a vector
      by default.

  Raises:
    ConfigError: where the derivative is undefined, zero everywhere, or not
      finite at a zero gradient.
  """
  if example is None:
    example = {"matrix": jnp.ones((3, 3)), "vector": jnp.ones(3)}
  state = optimizer.init(example)
  update = lambda grad: optimizer.update(grad, state, example)[0]
  random = optax.tree.random_like(jax.random.key(0), example)
  try:
    at_random = jax.vjp(update, random)[1](random)[0]
    at_zero = jax.vjp(update, optax.tree.zeros_like(random))[1](random)[0]
  # What JAX raises of a step that has no derivative, by its reason.
  except (TypeError, ValueError, NotImplementedError) as error:
    raise errors.ConfigError(
      f"{name} cannot be differentiated ({error}): the unrolled hypergradient "
      "needs an optimiser that can; take sgd or adamw, or the penalty"
    ) from error
  if not optax.tree.norm(at_random) > 0:
    raise errors.ConfigError(
      f"{name} has no derivative (its updates are signs of gradients, or do "
      "not depend on them): the unrolled hypergradient would leave out the "
      "lower level; take sgd or adamw, or the penalty"
    )
  if not jnp.isfinite(optax.tree.norm(at_zero)):
    raise errors.ConfigError(
      f"{name} has no finite derivative at a zero gradient: give Adam an "
      "eps_root such as 1e-16, and clip with training.optimizers"
    )
