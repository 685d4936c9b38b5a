"""A few upper variables, moved by evidence and not by noise.

    z = -d / max(|d|, mean of |d| so far)
    x = rate m max(0, 1 - doubt se^2 / m^2)

d is a step's derivative of the upper loss by a variable, m the mean of its z
over steps, as if `SILENT` steps of z = 0 had gone before, and se the standard
error of m. So |z| <= 1, a variable stays at 0 until its derivatives agree, and
`rate` is where it is once all of them do. This is no descent: x follows from
what every step said, and comes back where derivatives turn. Source: ours; the
factor is that of `bilevel.evidence`.
"""

import jax
import jax.numpy as jnp

from bilevel_jax.types import pytree

SILENT = 4


@pytree
class Slopes:
  """What is known of the derivatives by P variables, all float32."""

  steps: jax.Array  # [], that said anything
  sizes: jax.Array  # [P], sum of |d|
  total: jax.Array  # [P], sum of z
  squares: jax.Array  # [P], sum of z^2


def empty(variables: int) -> Slopes:
  """Returns what is known before the first step."""
  zeros = lambda: jnp.zeros(variables)
  return Slopes(
    steps=jnp.zeros(()), sizes=zeros(), total=zeros(), squares=zeros()
  )


def observe(slopes: Slopes, derivatives: jax.Array, says: jax.Array) -> Slopes:
  """Returns what is known after a step.

  Args:
    derivatives: [P], of the upper loss.
    says: [] bool, whether the upper gradient is one; else nothing changes.
  """
  steps, size = slopes.steps + 1, jnp.abs(derivatives)
  sizes = slopes.sizes + size
  usual = jnp.maximum(jnp.maximum(size, sizes / steps), 1e-30)
  z = -derivatives / usual
  new = Slopes(
    steps=steps,
    sizes=sizes,
    total=slopes.total + z,
    squares=slopes.squares + z**2,
  )
  return jax.tree.map(lambda x, old: jnp.where(says, x, old), new, slopes)


def values(slopes: Slopes, *, rate: float, doubt: float) -> jax.Array:
  """Returns [P], where the variables are; 0 before the first step.

  Args:
    rate: where a variable is after many steps of one opinion.
    doubt: squared standard errors of a mean that are taken to be noise.
  """
  count = slopes.steps + SILENT
  mean = slopes.total / count
  variance = (slopes.squares - count * mean**2) / (count - 1)
  noise = doubt * variance / count
  return rate * mean * jnp.maximum(0, 1 - noise / jnp.maximum(mean**2, 1e-30))
