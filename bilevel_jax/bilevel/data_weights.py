"""The hypergradient by weights of the lower level's terms, to first order.

    lower   g(x, s) = h(x) + sum_i s_i l_i(x)
    upper   f(x'),  x' = x + step(dg/dx),  a step of the lower level's optimiser

    df(x')/ds_i = <v, dl_i/dx>,   v = step'(dg/dx)^T df/dx

`one_step` takes df/dx at x in place of x', which saves a gradient, and all i
come from one derivative along v: no gradient of a single term is ever made.
Source: Ren et al., Learning to Reweight Examples for Robust Deep Learning,
arXiv 1803.09050, with one step through the live optimiser in place of SGD's.
"""

from collections.abc import Callable
from typing import TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from bilevel_jax.bilevel import mixed_mode, problem
from bilevel_jax.types import Tree

Losses: TypeAlias = Callable[[Tree], jax.Array]
"""lower -> [N], the lower level's terms, each without its weight."""


def direction(
  optimizer: optax.GradientTransformation,
  optimizer_state: Tree,
  lower: Tree,
  lower_gradient: Tree,
  upper_gradient: Tree,
) -> Tree:
  """Returns v, `upper_gradient` pulled back through the optimiser's step.

  Args:
    optimizer_state: its live state, a constant.
    lower: lower-level variables, where the step begins.
    lower_gradient: of the lower objective, which the step follows.
    upper_gradient: of the upper objective; a mean over earlier steps has less
      noise than this step's alone.
  """
  chex.assert_trees_all_equal_shapes(lower_gradient, upper_gradient)
  _, pull_back = jax.vjp(
    lambda gradient: optimizer.update(gradient, optimizer_state, lower)[0],
    lower_gradient,
  )
  return pull_back(upper_gradient)[0]


def along(
  losses: Losses,
  lower: Tree,
  vector: Tree,
  *,
  mixed_product: mixed_mode.MixedProduct = "finite_difference",
) -> jax.Array:
  """Returns [N], the derivatives <vector, dl_i/dx> of all terms.

  `finite_difference` evaluates the terms twice
  (`mixed_mode.central_difference`); `exact` transposes the reverse pass, at
  its memory.
  """
  if mixed_product == "exact":
    at, pull_back = jax.vjp(losses, lower)
    return jax.grad(
      lambda weights: problem.inner(pull_back(weights)[0], vector)
    )(jnp.zeros_like(at))
  return mixed_mode.central_difference(losses, lower, vector)
