"""BRIDGE's weight of tokens, against differences of the step by exponents."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax import config, errors, types
from bilevel_jax.bilevel import slopes
from bilevel_jax.methods import token_weight
from bilevel_jax.training import optimizers
from tests.methods import conftest, sgd

PENALTY = 0.25


def _method(world, **options):
  return world.method(
    "bridge", upper="token_weight", penalty=PENALTY, **options
  )


def _at(state, exponents, rate=2.0):
  """The state whose steps so far put the exponents there, to about 1e-6."""
  steps = 1e6
  mean = jnp.array(exponents) / rate
  known = slopes.Slopes(
    steps=jnp.array(steps),
    sizes=jnp.zeros(3),
    total=mean * (steps + slopes.SILENT),
    squares=mean**2 * (steps + slopes.SILENT),
  )
  return dataclasses.replace(state, extra=state.extra | {"evidence": known})


def _weights(world, base, exponents):
  """c p^a (1 - p)^b e^(d H), written out; times the tokens' own weights."""
  logprobs, entropies = sgd.scores(world, base, world.sft)
  a, b, d = exponents
  p = jnp.exp(logprobs)
  found = p**a * jnp.where(p < 1, 1 - p, 1) ** b * jnp.exp(d * entropies)
  own = jnp.asarray(world.sft.weights)
  return own * found * jnp.sum(own) / jnp.sum(own * found)


def _joint_gradient(world, exponents):
  """Of the lower level, the tokens' weights held."""
  held = _weights(world, world.base, exponents)

  def loss(base):
    logprobs, _ = sgd.scores(world, base, world.sft)
    sft = -jnp.sum(held * logprobs)
    rl = world.rl_loss()(base, None, world.rl)[0]
    return sft + PENALTY / (1 - PENALTY) * rl

  return jax.grad(loss)(world.base)


@pytest.mark.parametrize(
  "exponents", [(0.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.3, 1.7, -0.4)]
)
@pytest.mark.parametrize("adam", [None, 1e-2])
def test_derivatives_are_those_of_the_step(exponents, adam):
  """Of <grad L_RL, step(g(a, b, d))>, grad L_RL held, in float64."""
  with jax.enable_x64(True):
    world = conftest.make_world()
    method = _method(
      world, adam=adam, direction_decay=0.0, mixed_product="exact"
    )
    # Adam's first step is all but a sign: it has hardly a derivative.
    warm = dataclasses.replace(world.rl, advantages=-world.rl.advantages)
    before, _ = sgd.run(
      method, world.start(method), types.StepBatch(rl=warm, sft=world.sft)
    )
    state = _at(before, exponents)
    world = dataclasses.replace(world, base=before.base)
    after, metrics = sgd.run(method, state, world.batch())
    known, new = state.extra["evidence"], after.extra["evidence"]
    size = np.asarray(new.sizes - known.sizes)
    found = -np.sign(new.total - known.total) * size

    rl = sgd.rl_gradient(world, world.base)
    name, rate = ("sgd", conftest.RATE) if adam is None else ("adamw", adam)
    optimizer = optimizers.build(
      config.Optimizer(name=name, learning_rate=rate, clip_norm=None), 10
    )

    @jax.jit
    def along(exponents):
      gradient = _joint_gradient(world, exponents)
      step, _ = optimizer.update(
        gradient, state.optimizer_states["base"], world.base
      )
      return optax.tree.vdot(rl, step)

    slope = lambda e: (
      (along(exponents + 1e-5 * e) - along(exponents - 1e-5 * e)) / 2e-5
    )
    exponents = np.array(exponents)
    want = np.array([slope(e) for e in np.eye(3)])
    np.testing.assert_allclose(
      found, want, rtol=1e-6, atol=1e-6 * np.abs(want).max()
    )
    names = [f"token_weight/{name}" for name in token_weight.NAMES]
    np.testing.assert_allclose(
      [metrics[name] for name in names], exponents, atol=1e-4
    )
    if adam is None:
      gradient = _joint_gradient(world, exponents)
      chex.assert_trees_all_close(
        after.base, sgd.descended(world.base, gradient), rtol=1e-4
      )


def test_a_run_starts_as_plain_sft_beside_rl(world):
  method = _method(world)
  after, _ = sgd.run(method, world.start(method), world.batch())
  gradient = _joint_gradient(world, np.zeros(3))
  chex.assert_trees_all_close(
    after.base, sgd.descended(world.base, gradient), rtol=1e-5
  )


def test_rewards_that_say_nothing_move_nothing(world):
  world.rl = dataclasses.replace(
    world.rl, advantages=np.zeros_like(world.rl.advantages)
  )
  method = _method(world)
  start = state = world.start(method)
  for _ in range(6):
    state, metrics = sgd.run(method, state, world.batch())
  for name in ("evidence", "direction"):
    chex.assert_trees_all_equal(state.extra[name], start.extra[name])
  assert not any(metrics[f"token_weight/{n}"] for n in token_weight.NAMES)


def test_exponents_keep_their_bounds(world):
  method = _method(world)
  for far in (-9.0, 9.0):
    state = _at(world.start(method), [far] * 3)
    _, metrics = sgd.run(method, state, world.batch())
    found = [metrics[f"token_weight/{name}"] for name in token_weight.NAMES]
    bounds = token_weight.LOW if far < 0 else token_weight.HIGH
    np.testing.assert_array_equal(found, bounds)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"hypergradient": "unrolled"}, "one hypergradient, of one_step, got unr"),
    ({"compare_with": ("unrolled",)}, "takes one hypergradient"),
    ({"rl_only_base": "one_step"}, "upper=token_weight, which has no RL-only"),
    ({"rank_only": True}, "must be demonstrations, got token_weight"),
    ({"freeze_adapted": True}, "upper=token_weight has none"),
    ({"penalty_schedule": "adaptive"}, "token_weight does not measure"),
  ],
)
def test_what_it_cannot_have_is_refused(changes, said):
  own = {f"method.bridge.{name}": value for name, value in changes.items()}
  with pytest.raises(errors.ConfigError, match=said):
    conftest.settings_of(
      "bridge", {"method.bridge.upper": "token_weight"} | own
    )


def test_two_weights_of_tokens_are_refused():
  changes = {
    "method.bridge.upper": "token_weight",
    "sft.token_weight": "probability",
  }
  with pytest.raises(errors.ConfigError, match="which learns it, got prob"):
    conftest.settings_of("bridge", changes)
