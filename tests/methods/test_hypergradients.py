"""The four forms on a tiny transformer in float64, against differences.

No oracle here takes a second derivative: a product with one is a central
difference of first derivatives, F a plain sequence of optimiser steps.
"""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax import types
from bilevel_jax.bilevel.problem import Gradient, Objective, gradient
from bilevel_jax.methods import accumulation, bridge, contract, terms
from bilevel_jax.objectives import policy_gradient, weighting
from bilevel_jax.training import learner, optimizers
from tests import tiny_run
from tests.methods import conftest, sgd
from tests.models import tiny

PENALTY = 0.375  # exact in float32
ADAM = optax.chain(
  optimizers.clip_by_global_norm(0.5), optax.adamw(1e-2, eps_root=1e-16)
)


class Model(NamedTuple):
  """A language model, its trees, and batches of unequal lengths."""

  policy: types.Policy
  base: types.Tree
  hat: types.Tree
  adapter: types.Tree
  sft: types.TokenBatch
  rl: types.RLBatch

  def sft_loss(self) -> Objective:
    return terms.sft_objective(self.policy, chunk=64)

  def rl_loss(self, surrogate: str) -> Objective:
    return terms.rl_objective(
      self.policy,
      numbers=policy_gradient.PolicyGradient(kl_coef=0.1, importance_cap=2.0),
      temperature=1.3,
      chunk=64,
      surrogate=surrogate,
    )

  def update(self, *, surrogate="dice", optimizer=ADAM, **settings):
    """Returns (gradient of the adapter, state before, state after, metrics)."""
    unit = optax.sgd(1.0)  # the step is minus the gradient
    method = bridge.build(
      bridge.Options(penalty=PENALTY, surrogate=surrogate, **settings),
      contract.Setup(
        sft_loss=self.sft_loss,
        rl_loss=self.rl_loss,
        teacher=learner.teaching(self.policy, temperature=1.3, chunk=64),
        gradient=accumulation.gradient,
        optimizers={"base": optimizer, "adapter": unit},
        base_optimizer=lambda learning_rate, updates, plain: optimizer,
        advantages=conftest.advantages,
        as_one_batch=functools.partial(
          weighting.as_one_batch,
          rl=weighting.token_mean,
          sft=weighting.token_mean,
        ),
        total_updates=10,
      ),
    )
    state = method.init(self.base, self.adapter)
    warm = _warm(optimizer, self.base)
    state = dataclasses.replace(
      state,
      rl_only_base=None if state.rl_only_base is None else self.hat,
      optimizer_states=state.optimizer_states
      | {
        name: warm
        for name in ("base", "rl_only_base")
        if name in state.optimizer_states
      },
    )
    batch = types.StepBatch(rl=self.rl, sft=self.sft)
    after, metrics = sgd.run(method, state, batch)
    found = optax.tree.sub(state.adapter, after.adapter)
    return found, state, after, metrics


def _warm(optimizer, base):
  state = optimizer.init(base)
  for scale in (1e-2, -3e-3):
    grad = jax.tree.map(lambda x, s=scale: s * (1 + jnp.sin(7 * x)), base)
    _, state = optimizer.update(grad, state, base)
  return state


@pytest.fixture(scope="module")
def model():
  with jax.enable_x64(True):
    policy = tiny.make(
      dataclasses.replace(tiny_run.ARCHITECTURE, layers=1, vocab_size=7),
      compute_dtype="float64",
      remat="none",
    )
    base, adapter = tiny.weights(policy, dtype=np.float64)
    rng = np.random.default_rng(3)
    shifted = lambda tree, by: jax.tree.map(
      lambda x: x + by * rng.normal(size=x.shape), tree
    )
    world = conftest.batches(rng, sft=2, rl=4)
    score = jax.jit(
      lambda base: terms.token_logprobs(
        policy, base, adapter, world.rl, temperature=1.3, chunk=64
      )[0]
    )
    rl = dataclasses.replace(
      world.rl,
      old_logprobs=score(shifted(base, 0.02)),
      ref_logprobs=score(shifted(base, 0.05)),
      sampler_logprobs=score(shifted(base, 0.03)),
    )
    yield Model(policy, base, shifted(base, 0.01), adapter, world.sft, rl)


class Oracle:
  """First derivatives of J and of the RL loss, and optimiser steps."""

  def __init__(self, model: Model, surrogate: str):
    upper, lower = (
      gradient(model.sft_loss()),
      gradient(model.rl_loss(surrogate)),
    )

    def joint(base, adapter):
      u, v = upper(base, adapter, model.sft), lower(base, adapter, model.rl)
      mixed = jax.tree.map(
        lambda a, b: (1 - PENALTY) * a + PENALTY * b,
        (u.by_lower, u.by_upper, u.loss),
        (v.by_lower, v.by_upper, v.loss),
      )
      return Gradient(*mixed, aux=None)

    self.joint = jax.jit(joint)
    self.alone = jax.jit(lambda b, w: lower(b, w, model.rl))
    self.step = jax.jit(
      lambda grad, state, base: ADAM.update(grad, state, base)
    )

  def move(self, function, base, state, adapter, steps=1):
    for _ in range(steps):
      step, state = self.step(function(base, adapter).by_lower, state, base)
      base = optax.apply_updates(base, step)
    return base

  def product(self, function, base, adapter, vector, size=1e-6):
    """Returns the two second derivatives of a loss times a vector."""
    size = size / optax.tree.norm(vector)
    ahead, behind = (
      function(optax.tree.add_scale(base, s, vector), adapter)
      for s in (size, -size)
    )
    return jax.tree.map(
      lambda a, b: (a - b) / (2 * size),
      (ahead.by_lower, ahead.by_upper),
      (behind.by_lower, behind.by_upper),
    )


@pytest.fixture(scope="module")
def oracle_of(model):
  return functools.cache(functools.partial(Oracle, model))


def _direction(tree):
  rng = np.random.default_rng(5)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), tree)


def _slope(value, adapter, direction, size=2e-7):
  ahead, behind = (
    value(optax.tree.add_scale(adapter, s, direction)) for s in (size, -size)
  )
  return (ahead - behind) / (2 * size)


def _assert_slope(found, want, direction):
  np.testing.assert_allclose(optax.tree.vdot(found, direction), want, rtol=1e-6)


@pytest.mark.parametrize(
  ("life", "surrogate", "steps"),
  [("persistent", "dice", 2), ("one_step", "fixed_sample", 1)],
)
def test_unrolled_is_the_slope_of_f_through_adamw(
  model, oracle_of, life, surrogate, steps
):
  with jax.enable_x64(True):
    oracle = oracle_of(surrogate)
    found, state, after, _ = model.update(
      surrogate=surrogate,
      hypergradient="unrolled",
      inner_steps=steps,
      rl_only_base=life,
    )
    start = model.hat if life == "persistent" else model.base
    inner = state.optimizer_states["base"]

    def value(adapter):
      u = oracle.move(oracle.joint, model.base, inner, adapter, steps=steps)
      v = oracle.move(oracle.alone, start, inner, adapter, steps=steps)
      return (
        oracle.joint(u, adapter).loss - PENALTY * oracle.alone(v, adapter).loss
      )

    direction = _direction(model.adapter)
    _assert_slope(found, _slope(value, model.adapter, direction), direction)
    moved = oracle.move(
      oracle.joint, model.base, inner, model.adapter, steps=steps
    )
    chex.assert_trees_all_close(after.base, moved, rtol=1e-12)


def test_penalty_is_the_slope_of_the_penalty_objective(model, oracle_of):
  with jax.enable_x64(True):
    oracle = oracle_of("fixed_sample")
    found, *_ = model.update(surrogate="fixed_sample")

    @jax.jit
    def score(adapter):
      return terms.token_logprobs(
        model.policy, model.hat, adapter, model.rl, temperature=1.3, chunk=64
      )[0]

    # The copy's KL losses count by its ratio to what sampled, a constant.
    more = jnp.exp(score(model.adapter) - model.rl.old_logprobs) - 1

    def alone(adapter):
      kl = policy_gradient.kl_k3(score(adapter), model.rl.ref_logprobs)
      plain = oracle.alone(model.hat, adapter).loss
      return plain + 0.1 * jnp.sum(model.rl.weights * more * kl)

    def value(adapter):
      joint = oracle.joint(model.base, adapter).loss
      return joint - PENALTY * alone(adapter)

    direction = _direction(model.adapter)
    _assert_slope(found, _slope(value, model.adapter, direction), direction)


def test_implicit_solves_with_both_hessians(model, oracle_of):
  with jax.enable_x64(True):
    oracle = oracle_of("dice")
    found, *_, metrics = model.update(
      hypergradient="implicit",
      solver="neumann",
      solver_iterations=2,
      neumann_step=0.05,
      damping=0.3,
    )

    def branch(function, base):
      at = function(base, model.adapter)
      power = total = at.by_lower
      for _ in range(2):
        hessian, _ = oracle.product(function, base, model.adapter, power)
        power = jax.tree.map(
          lambda p, h: p - 0.05 * (h + 0.3 * p), power, hessian
        )
        total = optax.tree.add(total, power)
      solution = optax.tree.scale(0.05, total)
      _, mixed = oracle.product(function, base, model.adapter, solution)
      return optax.tree.sub(at.by_upper, mixed)

    want = optax.tree.add_scale(
      branch(oracle.joint, model.base),
      -PENALTY,
      branch(oracle.alone, model.hat),
    )
    direction = _direction(model.adapter)
    _assert_slope(found, optax.tree.vdot(want, direction), direction)
    assert int(metrics["bilevel/solver_iterations"]) == 4


def test_one_step_is_the_expansion_of_one_step(model, oracle_of):
  with jax.enable_x64(True):
    oracle = oracle_of("dice")
    found, *_ = model.update(
      hypergradient="one_step",
      rl_only_base="one_step",
      mixed_product="exact",
      optimizer=optax.sgd(0.1),
    )
    joint = oracle.joint(model.base, model.adapter)
    alone = oracle.alone(model.base, model.adapter)
    terms_of_f = [
      (
        at.by_upper,
        oracle.product(f, model.base, model.adapter, at.by_lower)[1],
      )
      for f, at in ((oracle.joint, joint), (oracle.alone, alone))
    ]
    branches = [
      optax.tree.add_scale(direct, -2 * 0.1, mixed)
      for direct, mixed in terms_of_f
    ]
    want = optax.tree.add_scale(branches[0], -PENALTY, branches[1])
    direction = _direction(model.adapter)
    _assert_slope(found, optax.tree.vdot(want, direction), direction)


FORMS = {
  "penalty": {},
  "unrolled": {"inner_steps": 2},
  "implicit": {"solver_iterations": 2},
  "one_step": {"rl_only_base": "one_step"},
}


def _adapter_gradient(world, batch=None, **settings):
  method = world.method("bridge", **settings)
  state = world.start(method)
  after, metrics = sgd.run(method, state, batch or world.batch())
  moved = optax.tree.sub(state.adapter, after.adapter)
  return optax.tree.scale(1 / sgd.RATE, moved), metrics


@pytest.mark.parametrize("surrogate", ["dice", "fixed_sample"])
def test_finite_differences_agree_with_the_exact_products(world, surrogate):
  score = lambda: terms.token_logprobs(
    world.policy, world.base, world.adapter, world.rl, temperature=1.0, chunk=64
  )[0]
  world.rl = dataclasses.replace(world.rl, old_logprobs=jax.jit(score)())
  settings = {
    "hypergradient": "one_step",
    "surrogate": surrogate,
    **FORMS["one_step"],
  }
  exact, _ = _adapter_gradient(world, mixed_product="exact", **settings)
  rough, _ = _adapter_gradient(world, **settings)
  first, _ = _adapter_gradient(world, **FORMS["one_step"])
  difference = lambda x, y: optax.tree.norm(optax.tree.sub(x, y))
  assert difference(exact, rough) < 0.01 * difference(exact, first)


def test_a_finite_difference_asks_for_the_old_logprobs(world):
  """A stopped copy of its own would move along with the base."""
  plan = lambda **settings: world.method("bridge", **settings).plan(0, {})
  one_step = {"hypergradient": "one_step", **FORMS["one_step"]}
  assert not plan().old_logprobs
  assert not plan(mixed_product="exact", **one_step).old_logprobs
  assert plan(**one_step).old_logprobs
  assert plan(hypergradient="unrolled").old_logprobs
  assert plan(compare_with=("unrolled",)).old_logprobs


def test_cosines_between_forms_are_logged_on_demand(world):
  world.rl = dataclasses.replace(
    world.rl, old_logprobs=-2 * np.ones_like(world.rl.weights)
  )
  settings = {
    "hypergradient": "unrolled",
    "surrogate": "fixed_sample",  # which penalty alone has
    **FORMS["one_step"],
  }
  ours, metrics = _adapter_gradient(
    world, compare_with=("penalty",), **settings
  )
  theirs, _ = _adapter_gradient(world, **FORMS["one_step"])
  want = optax.tree.vdot(ours, theirs) / (
    optax.tree.norm(ours) * optax.tree.norm(theirs)
  )
  np.testing.assert_allclose(
    metrics["bilevel/cosine_with_penalty"], want, rtol=1e-4
  )


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_learn_from_is_not_a_nan(world, form):
  """Equal rewards, a row without weight, and no demonstration at all."""
  world.rl = dataclasses.replace(
    world.rl,
    advantages=0 * world.rl.advantages,
    weights=world.rl.weights * (np.arange(len(world.rl.weights)) > 0)[:, None],
    old_logprobs=-np.ones_like(world.rl.weights),
  )
  world.sft = dataclasses.replace(world.sft, weights=0 * world.sft.weights)
  own = {"hypergradient": form, **FORMS[form]}
  clipped_adam = {"name": "adamw", "learning_rate": 1e-2, "clip_norm": 0.5}
  settings = conftest.settings_of(
    "bridge",
    {f"method.bridge.{name}": value for name, value in own.items()}
    | {f"optimizer.base.{name}": x for name, x in clipped_adam.items()},
  )
  method = learner.build_method(settings, world.policy)
  state = world.start(method)
  after, metrics = sgd.run(method, state, world.batch())
  chex.assert_tree_all_finite((after.base, after.adapter, dict(metrics)))
  chex.assert_trees_all_equal(after.adapter, state.adapter)


def test_adaptive_penalty_follows_the_measured_gain(world):
  method = world.method("bridge", penalty=0.5, penalty_schedule="adaptive")
  away = jax.tree.map(lambda x: x + 0.3, world.base)
  away["table"] = away["table"] * 1.3
  state = world.start(method, rl_only_base=away)
  update = jax.jit(method.update)
  seen, gains = [], []
  for _ in range(3):
    state, metrics, _ = update(state, world.batch())
    seen.append(float(metrics["bilevel/penalty"]))
    gains.append(float(metrics["bilevel/cooperative_gain"]))
  push = np.clip(-np.array(gains[:2]) / 0.02 - 1, -1, 1)
  logits = np.log(np.array(seen) / (1 - np.array(seen)))
  np.testing.assert_allclose(np.diff(logits), 0.1 * push, rtol=1e-4)
  assert seen[0] == pytest.approx(0.5)


def test_adaptive_penalty_rests_where_nothing_could_be_scored(world):
  method = world.method("bridge", penalty=0.5, penalty_schedule="adaptive")
  rl = dataclasses.replace(
    world.rl,
    weights=np.zeros_like(world.rl.weights),
    scored=np.zeros_like(world.rl.scored),
  )
  batch = dataclasses.replace(world.batch(), rl=rl)
  state, update = world.start(method), jax.jit(method.update)
  for _ in range(2):
    state, metrics, _ = update(state, batch)
  assert float(metrics["bilevel/penalty"]) == pytest.approx(0.5)
