"""Weights of the lower level's terms, moved by evidence and not by noise.

The hypergradient by a term's weight is mostly noise: the upper level's
gradient comes from a few samples. A step says which of its terms helped more
than its others,

    y_i = -(d_i - mean of the step's d),   z_i = y_i / max(r, R)

with d_i the derivative of the upper loss by term i's weight, r the root mean
square of the step's y, R the geometric mean of all r so far; the mean is
weighted by the weights themselves. Two things are learned of z:

  pooled  a = gamma' x, x what is known of a term beforehand (less its mean),
          gamma by ridge regression; times max(0, 1 - t^2 se^2 / a^2), with
          the standard error of a sandwich estimate clustered by step, and
          Student's t as rare as sqrt(doubt) standard errors
  own     b_i, the mean of z_i - a_i, shrunk by a one-way analysis of variance:
          0 unless terms differ by more than `excess` times what noise explains

    s_i = bound sigmoid(pooled_rate a_i + own_rate b_i + c), 1 at a = b = 0

so a weight stays at 1 until there is evidence. Only relative worth moves a
weight: the level of d follows from how an optimiser normalises a step, where
more of one gradient is less of all others. docs/hypergradients.md has the
reasons. Source: ours, of textbook parts; the variance of gamma is Liang
and Zeger's (Biometrika 73, 1986).
"""

import dataclasses
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from bilevel_jax.types import pytree

_RIDGE = 0.1
_FLOOR = 1e-3  # weight that a term of weight 0 has in means


class Form(NamedTuple):
  """How evidence moves weights."""

  pooled_rate: float
  own_rate: float
  doubt: float = 4.0
  excess: float = 1.5
  dependence: float = 1.0
  """Variance of a mean of steps, over that of a mean of independent ones."""
  bound: float = 2.0  # largest weight, above 1

  def weights(self, pooled: jax.Array, own: jax.typing.ArrayLike) -> jax.Array:
    """Returns the weights of terms with these effects, each in (0, bound).

    Args:
      pooled: [N], by what is known of them beforehand.
      own: [N], their own beside that, or 0.
    """
    evidence = self.pooled_rate * pooled + self.own_rate * own
    return self.bound * jax.nn.sigmoid(evidence - math.log(self.bound - 1))


@pytree
class Regression:
  """Sums over steps, for gamma and its covariance. C = sum x x', a = sum x z
  of a step's terms, x and z less their means over the step."""

  xx: jax.Array  # [P, P], of C
  xz: jax.Array  # [P], of a
  aa: jax.Array  # [P, P], of a a'
  ac: jax.Array  # [P, P, P], of a C
  cc: jax.Array  # [P, P, P, P], of C C


@pytree
class Evidence:
  """What is known of N terms."""

  steps: jax.Array  # [] float32, steps that said anything
  log_scale: jax.Array  # [] float32, sum of log r over them
  total: jax.Array  # [N] float32, sum of z
  squares: jax.Array  # [N] float32, sum of z^2
  times: jax.Array  # [N] float32, steps that said anything of it
  known: jax.Array  # [N] bool, seen in any step
  weights: jax.Array  # [N] float32, 1 where not known
  observed: jax.Array  # [] float32, steps, silent ones too
  mean_weights: jax.Array  # [N] float32, of the weights after each of them
  features: jax.Array | None  # [N, P], as first seen; None: not pooled
  regression: Regression | None


def empty(terms: int, features: int) -> Evidence:
  """Returns the evidence before the first step."""
  zeros, p = jnp.zeros, features
  return Evidence(
    steps=zeros(()),
    log_scale=zeros(()),
    total=zeros(terms),
    squares=zeros(terms),
    times=zeros(terms),
    known=zeros(terms, bool),
    weights=jnp.ones(terms),
    observed=zeros(()),
    mean_weights=jnp.ones(terms),
    features=zeros((terms, p)) if p else None,
    regression=Regression(
      xx=zeros((p, p)),
      xz=zeros(p),
      aa=zeros((p, p)),
      ac=zeros((p, p, p)),
      cc=zeros((p, p, p, p)),
    )
    if p
    else None,
  )


def observe(
  evidence: Evidence,
  form: Form,
  rows: jax.Array,
  derivatives: jax.Array,
  features: jax.Array,
  *,
  real: jax.Array,
  says: jax.Array,
) -> Evidence:
  """Returns the evidence after a step.

  Args:
    rows: [B] int32, the terms of the step.
    derivatives: [B], of the upper loss by their weights.
    features: [B, P], of terms that were not seen before; others keep theirs.
    real: [B] bool, False for rows that are padding.
    says: [] bool, whether the upper gradient is one; else only `known`,
      `features` and the mean weights change.
  """
  chex.assert_equal_shape([rows, derivatives, real])
  chex.assert_rank([features, says], [2, 0])
  share = jnp.where(real, evidence.weights[rows] + _FLOOR, 0.0)
  worth = jnp.where(real, -derivatives, 0.0)
  worth = jnp.where(real, worth - _mean(share, worth), 0.0)
  rms = jnp.sqrt(_mean(real, worth**2))
  says &= rms > 0
  steps = evidence.steps + says
  log_scale = evidence.log_scale + jnp.where(
    says, jnp.log(jnp.where(rms > 0, rms, 1)), 0.0
  )
  usual = jnp.exp(log_scale / jnp.maximum(steps, 1))
  z = worth / jnp.maximum(jnp.maximum(rms, usual), jnp.finfo(rms.dtype).tiny)

  # Where padding would be written there is nothing.
  rows = jnp.where(real, rows, len(evidence.total))
  add = lambda table, x: table.at[rows].add(jnp.where(says, x, 0), mode="drop")
  seen, regression = evidence.features, evidence.regression
  if seen is not None and regression is not None:
    first = evidence.known.at[rows].get(mode="fill", fill_value=True)
    seen = seen.at[jnp.where(first, len(seen), rows)].set(features, mode="drop")
    x = seen.at[rows].get(mode="fill", fill_value=0)
    x = jnp.where(real[:, None], x - _mean(real, x)[None], 0.0)
    regression = _regressed(
      regression, x, jnp.where(real, z - _mean(real, z), 0.0), says
    )
  new = Evidence(
    steps=steps,
    log_scale=log_scale,
    total=add(evidence.total, z),
    squares=add(evidence.squares, z**2),
    times=add(evidence.times, jnp.ones_like(z)),
    known=evidence.known.at[rows].set(True, mode="drop"),
    weights=evidence.weights,
    observed=evidence.observed + 1,
    mean_weights=evidence.mean_weights,
    features=seen,
    regression=regression,
  )
  pooled = (
    jnp.zeros_like(new.total) if seen is None else _pooled(new, form, seen)
  )
  weights = form.weights(pooled, _own(new, form, pooled))
  kept = jnp.where(new.known & says, weights, evidence.weights)
  mean = new.mean_weights + (kept - new.mean_weights) / new.observed
  return dataclasses.replace(new, weights=kept, mean_weights=mean)


def weights(
  evidence: Evidence, form: Form, rows: jax.Array, features: jax.Array
) -> jax.Array:
  """Returns [B], the weights of terms, of those never seen by their features.

  Args:
    rows: [B] int32.
    features: [B, P], read of terms that were not seen before.
  """
  given = evidence.weights[rows]
  if evidence.features is None:
    return given
  first = form.weights(_pooled(evidence, form, features), 0.0)
  return jnp.where(evidence.known[rows], given, first)


class Ranking(NamedTuple):
  """What was found of each term."""

  weight: jax.Array  # [N]
  mean_weight: jax.Array  # [N], over all steps so far
  effect: jax.Array  # [N], mean of z: above 0 it helped; NaN: never seen
  standard_error: jax.Array  # [N]
  times: jax.Array  # [N], steps that the effect is a mean of


def ranking(evidence: Evidence) -> Ranking:
  """Returns what was found of each term."""
  times = evidence.times
  seen = jnp.where(times > 0, times, jnp.nan)
  within = _within(evidence)
  return Ranking(
    evidence.weights,
    evidence.mean_weights,
    evidence.total / seen,
    jnp.sqrt(within / seen),
    times,
  )


def _regressed(
  sums: Regression, x: jax.Array, z: jax.Array, says: jax.Array
) -> Regression:
  a, c = x.T @ z, x.T @ x
  step = Regression(
    xx=c,
    xz=a,
    aa=jnp.outer(a, a),
    ac=jnp.einsum("i,jk->ijk", a, c),
    cc=jnp.einsum("ij,kl->ijkl", c, c),
  )
  return jax.tree.map(lambda s, x: s + jnp.where(says, x, 0), sums, step)


def _pooled(evidence: Evidence, form: Form, features: jax.Array) -> jax.Array:
  """[M], the effects that features [M, P] speak for, doubtful ones left out."""
  sums, steps = evidence.regression, evidence.steps
  assert sums is not None
  assert evidence.features is not None
  p = len(sums.xz)
  inverse = jnp.linalg.inv(sums.xx + _RIDGE * jnp.eye(p))
  gamma = inverse @ sums.xz
  # sum over steps of (a - C gamma) (a - C gamma)'
  cross = jnp.einsum("ijk,k->ij", sums.ac, gamma)
  meat = sums.aa - cross - cross.T
  meat += jnp.einsum("ijkl,j,l->ik", sums.cc, gamma, gamma)
  covariance = inverse @ (meat * steps / jnp.maximum(steps - p, 1)) @ inverse
  share = evidence.known * (evidence.weights + _FLOOR)
  x = features - _mean(share, evidence.features)[None]
  effects = x @ gamma
  squared_error = jnp.einsum("ij,jk,ik->i", x, covariance, x) * form.dependence
  squared_error *= _t_squared(form.doubt, jnp.maximum(steps - p, 1))
  doubt = squared_error / jnp.maximum(effects**2, 1e-20)
  return jnp.where(steps > p + 2, effects * jnp.maximum(0, 1 - doubt), 0.0)


def _t_squared(z_squared: float, free: jax.Array) -> jax.Array:
  """Student's t squared that is as rare as a normal z, of `free` degrees.

  Source: D. L. Wallace, Annals of Mathematical Statistics 30, 1959.
  """
  corrected = z_squared * ((8 * free + 3) / (8 * free + 1)) ** 2
  return free * jnp.expm1(corrected / free)


def _own(evidence: Evidence, form: Form, pooled: jax.Array) -> jax.Array:
  """[N], what is each term's own beside the pooled effects."""
  times = evidence.times
  seen, total = times > 0, jnp.sum(times)
  terms = jnp.sum(seen)
  rest = jnp.where(seen, evidence.total / jnp.maximum(times, 1) - pooled, 0.0)
  between = jnp.sum(times * (rest - _mean(times, rest)) ** 2)
  between /= jnp.maximum(terms - 1, 1)
  within = jnp.maximum(_within(evidence), 1e-20)
  usual = total - jnp.sum(times**2) / jnp.maximum(total, 1)
  usual = jnp.maximum(usual / jnp.maximum(terms - 1, 1), 1e-9)
  variance = jnp.maximum(0, between - form.excess * within) / usual
  variance = jnp.where(total > terms, variance, 0.0)
  return variance * times / (variance * times + within) * rest


def _within(evidence: Evidence) -> jax.Array:
  """[], the variance of z about the mean of its term."""
  times = jnp.maximum(evidence.times, 1)
  free = jnp.sum(evidence.times) - jnp.sum(evidence.times > 0)
  spread = evidence.squares - evidence.total**2 / times
  return jnp.sum(spread) / jnp.maximum(free, 1)


def _mean(weights: jax.Array, x: jax.Array) -> jax.Array:
  """The weighted mean over the first axis, 0 where all weights are."""
  total = jnp.sum(weights)
  return jnp.tensordot(weights.astype(x.dtype), x, 1) / jnp.where(
    total > 0, total, 1
  )
