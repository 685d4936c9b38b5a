"""The penalty form with its levels swapped, against the losses of the rows."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax.bilevel import evidence
from tests.methods import sgd

PENALTY = 0.25
WEIGHTS = np.linspace(0.2, 1.8, 6).astype(np.float32)


def _start(world, *, away):
  """A state with known weights, whose copy is `away` from its base."""
  method = world.method(
    "bridge",
    upper="demonstrations",
    hypergradient="penalty",
    penalty=PENALTY,
  )
  state = world.start(method)
  known = dataclasses.replace(
    state.extra["evidence"],
    weights=jnp.asarray(WEIGHTS),
    known=jnp.ones(6, bool),
  )
  copy = {"table": world.base["table"] + away}
  extra = state.extra | {"evidence": known, "sft_only_base": copy}
  return method, dataclasses.replace(state, extra=extra)


def _losses(world, base):
  """[B], minus the weighted log-probs of each row."""
  logprobs, _ = sgd.scores(world, base, world.sft)
  return -jnp.sum(world.sft.weights * logprobs, axis=1)


def test_weights_move_by_the_losses_less_those_of_sft_alone(world):
  """dF/ds_i = (1 - penalty) [l_i(base) - l_i(copy)], of its mean."""
  away = 0.3 * jax.random.normal(jax.random.key(4), (7, 7))
  method, state = _start(world, away=away)
  after, _ = sgd.run(method, state, world.batch())
  copy = state.extra["sft_only_base"]
  apart = (1 - PENALTY) * (_losses(world, world.base) - _losses(world, copy))
  d = np.asarray(apart) / world.sft.weights.sum(axis=1)
  worth = -(d - np.average(d, weights=WEIGHTS + 1e-3))
  found = after.extra["evidence"]
  np.testing.assert_allclose(
    found.total, worth / np.sqrt(np.mean(worth**2)), rtol=1e-4, atol=1e-5
  )
  usual = np.log(np.sqrt(np.mean(worth**2)))
  np.testing.assert_allclose(found.log_scale, usual, rtol=1e-4)


def test_both_bases_move_by_their_own_losses(world):
  method, state = _start(world, away=0.3 * jnp.eye(7))
  after, _ = sgd.run(method, state, world.batch())
  sft = lambda base: jnp.sum(WEIGHTS * _losses(world, base))
  rl = lambda base: world.rl_loss()(base, None, world.rl)[0]
  joint = lambda base: sft(base) + PENALTY / (1 - PENALTY) * rl(base)
  copy = state.extra["sft_only_base"]
  for found, start, loss in (
    (after.base, world.base, joint),
    (after.extra["sft_only_base"], copy, sft),
  ):
    want = sgd.descended(start, sgd.gradient(loss, start))
    chex.assert_trees_all_close(found, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("silent", [False, True])
def test_nothing_is_learned_of_equal_copies_or_equal_rewards(world, silent):
  method, state = _start(world, away=0.3 * jnp.eye(7) if silent else 0.0)
  batch = world.batch()
  if silent:
    rl = dataclasses.replace(batch.rl, advantages=0 * batch.rl.advantages)
    batch = dataclasses.replace(batch, rl=rl)
  after, _ = sgd.run(method, state, batch)
  found = after.extra["evidence"]
  assert isinstance(found, evidence.Evidence)
  assert not found.times.any()
  np.testing.assert_array_equal(found.weights, WEIGHTS)
