"""How the penalty lambda goes over a run: (init, update) pairs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel_jax import errors
from bilevel_jax.types import Tree

BOUNDS = 0.01, 0.99
"""Least and largest lambda of the adaptive rule."""


class Penalty(NamedTuple):
  """A rule for lambda, as pure functions."""

  init: Callable[[], Tree]
  """() -> state."""
  update: Callable[[Tree, jax.typing.ArrayLike], tuple[jax.Array, Tree]]
  """(state, gap) -> (lambda of this step, state). The gap says how far the
  lower level is from its optimum, 0 there; rules of time do not read it."""


def scheduled(schedule: optax.ScalarOrSchedule) -> Penalty:
  """Returns the rule that follows time alone: a constant or a schedule.

  Args:
    schedule: lambda, or a function of the updates applied so far.
  """
  at = schedule if callable(schedule) else optax.constant_schedule(schedule)

  def update(count, gap):
    del gap
    return jnp.asarray(at(count), jnp.float32), count + 1

  return Penalty(lambda: jnp.zeros((), jnp.int32), update)


def adaptive(*, start: float, target: float, rate: float = 0.1) -> Penalty:
  """Returns the rule that raises lambda while the gap is above a target.

      logit(lambda) <- logit(lambda) + rate clip(gap / target - 1, -1, 1)

  lambda / (1 - lambda) is the multiplier of the constraint gap <= target, and
  this is dual ascent on its logarithm. The rule is ours, after PPO's adaptive
  KL coefficient (arXiv 1707.06347, section 4), which doubles and halves. A gap
  that is not finite changes nothing.

  Args:
    target: gap to hold, above 0.
    rate: largest change of the logit in a step.

  Raises:
    ConfigError: `start` is not within `BOUNDS`, or target > 0 fails.
  """
  lowest, highest = BOUNDS
  if not lowest <= start <= highest:
    raise errors.ConfigError(
      f"start must be from {lowest} to {highest}, got {start}"
    )
  if not target > 0:
    raise errors.ConfigError(
      f"the target of the gap must be above 0, got {target}"
    )
  logit = jax.scipy.special.logit

  def update(state, gap):
    push = jnp.clip(jnp.asarray(gap, jnp.float32) / target - 1, -1, 1)
    state = state + rate * jnp.where(jnp.isfinite(push), push, 0)
    state = jnp.clip(state, logit(lowest), logit(highest))
    return jax.nn.sigmoid(state), state

  return Penalty(lambda: jnp.asarray(logit(start), jnp.float32), update)
