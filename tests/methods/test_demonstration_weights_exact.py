"""Derivatives by demonstrations' weights on a transformer, in float64.

The oracle is the step itself: L_RL after it, or <grad L_RL, step>, at weights a
little above and below.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax.bilevel import data_weights, problem, unrolled
from bilevel_jax.methods import terms, weighted_updates
from bilevel_jax.objectives import policy_gradient
from tests import tiny_run
from tests.bilevel import steps
from tests.methods import conftest
from tests.models import tiny

ROWS = 4
S = np.linspace(0.5, 1.5, ROWS)


class Task(NamedTuple):
  """L_RL, the lower level's gradient, and the rows' shares of the SFT loss."""

  base: Any
  upper: Any  # base -> L_RL
  upper_gradient: Any
  lower: Any  # (base, s) -> (1 - penalty) sum s_i l_i + penalty L_RL
  lower_gradient: Any
  along: Any  # (base, v) -> [B]


@pytest.fixture(scope="module")
def task():
  with jax.enable_x64(True):
    policy = tiny.make(
      dataclasses.replace(tiny_run.ARCHITECTURE, layers=1, vocab_size=7),
      compute_dtype="float64",
      remat="none",
    )
    base, _ = tiny.weights(policy, dtype=np.float64)
    batch = conftest.batches(np.random.default_rng(3), sft=ROWS, rl=4)
    sft = terms.sft_objective(policy, chunk=64)
    rl = terms.rl_objective(
      policy,
      numbers=policy_gradient.PolicyGradient(kl_coef=0.1, importance_cap=2.0),
      temperature=1.3,
      chunk=64,
    )
    upper = jax.jit(lambda base: rl(base, None, batch.rl)[0])

    def of_rows(base, s):
      rows = weighted_updates.weighted(batch.sft, s)
      return 0.75 * sft(base, None, rows)[0]

    losses = lambda base: jax.grad(lambda s: of_rows(base, s))(jnp.ones(ROWS))
    lower = lambda base, s: of_rows(base, s) + 0.25 * upper(base)
    yield Task(
      base,
      upper,
      jax.jit(jax.grad(upper)),
      lower,
      jax.jit(jax.grad(lower)),
      jax.jit(
        lambda base, v: data_weights.along(
          losses, base, v, mixed_product="exact"
        )
      ),
    )


def _close(found, want):
  np.testing.assert_allclose(
    found, want, rtol=1e-6, atol=1e-6 * np.abs(want).max()
  )


@pytest.mark.parametrize("name", steps.OPTIMIZERS)
def test_one_step_is_the_derivative_of_the_step_along_the_reward(task, name):
  with jax.enable_x64(True):
    optimizer, base = steps.OPTIMIZERS[name], task.base
    state, held = steps.warm(optimizer, base), task.upper_gradient(base)
    move = jax.jit(lambda gradient: optimizer.update(gradient, state, base)[0])
    direction = data_weights.direction(
      optimizer, state, base, task.lower_gradient(base, S), held
    )
    _close(
      task.along(base, direction),
      steps.differences(
        lambda s: problem.inner(held, move(task.lower_gradient(base, s))), S
      ),
    )


@pytest.mark.parametrize("name", steps.OPTIMIZERS)
def test_unrolled_is_the_derivative_of_the_reward_after_the_step(task, name):
  """And one_step is that to first order in the rate."""
  with jax.enable_x64(True):
    optimizer, base = steps.OPTIMIZERS[name], task.base
    state = steps.warm(optimizer, base)
    move = jax.jit(lambda gradient: optimizer.update(gradient, state, base)[0])

    def after(s):
      step = move(task.lower_gradient(base, s))
      return task.upper(optax.apply_updates(base, step))

    of = lambda function: problem.gradient(
      lambda base, s, batch: (function(base, s), {})
    )
    found = unrolled.unrolled(optimizer, steps=1)(
      of(lambda base, s: task.upper(base)),
      of(task.lower),
      base,
      jnp.asarray(S),
      None,
      None,
      state,
    )
    want = steps.differences(after, S)
    _close(found.gradient, want)
    first = task.along(
      base,
      data_weights.direction(
        optimizer,
        state,
        base,
        task.lower_gradient(base, S),
        task.upper_gradient(base),
      ),
    )
    apart = np.linalg.norm(first - want) / np.linalg.norm(want)
    assert 1e-6 < apart < 0.5
