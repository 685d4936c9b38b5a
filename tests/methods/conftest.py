"""A tabular problem small enough to know every answer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax import config, methods, types
from bilevel_jax.bilevel.problem import Objective, Problem
from bilevel_jax.methods import accumulation, contract, terms
from bilevel_jax.objectives import policy_gradient, weighting
from bilevel_jax.rollout import assemble, routing
from tests import tabular

VOCABULARY = 7
ADVANTAGES = functools.partial(
  policy_gradient.group_advantages, normalise="group_mean"
)
GROUPS = routing.Groups(
  rewards=np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]),
  correct=np.array([[0, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], bool),
  scored=np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]], bool),
  demonstrated=np.array([True, True, False, False]),
  given=np.zeros((4, 3), int),
  truncated=np.array([[0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]], bool),
)


@dataclasses.dataclass
class World:
  """A policy, batches with unequal lengths, and methods built over them."""

  policy: types.Policy
  base: types.Tree
  adapter: types.Tree
  sft: types.TokenBatch
  rl: types.RLBatch

  def problem(self, *, kl_coef: float = 0.0) -> Problem:
    return Problem(
      upper=terms.sft_objective(self.policy, chunk=64),
      lower=self.reinforced(kl_coef),
    )

  def reinforced(self, kl_coef: float, **own) -> Objective:
    return terms.rl_objective(
      self.policy,
      temperature=1.0,
      clip_low=0.2,
      clip_high=0.2,
      kl_coef=kl_coef,
      chunk=64,
      **own,
    )

  def method(
    self,
    name: str,
    *,
    kl_coef=0.0,
    optimizer=None,
    total_updates=10,
    updates_per_step=1,
    **settings,
  ) -> contract.Method:
    """Returns the method; sections of its settings, as dicts, by name."""
    sgd = optax.sgd(0.1)
    inner = optimizer or sgd
    for section, values in settings.items():
      if isinstance(values, dict):
        own = getattr(config.Method(), section)
        settings[section] = dataclasses.replace(own, **values)
    return methods.METHODS[name](
      config.Method(name=name, **settings),
      contract.Ingredients(
        problem=self.problem(kl_coef=kl_coef),
        gradient=accumulation.gradient,
        optimizers={"base": inner, "adapter": sgd, "rl_only_base": inner},
        total_updates=total_updates,
        supervised=functools.partial(
          terms.sft_objective, self.policy, chunk=64
        ),
        reinforced=functools.partial(self.reinforced, kl_coef),
        base_optimizer=lambda learning_rate, updates, scale=1.0: _scaled(
          inner if learning_rate is None else optax.sgd(learning_rate), scale
        ),
        advantages=ADVANTAGES,
        updates_per_step=updates_per_step,
        reference_dtype=np.float32 if kl_coef else None,
      ),
    )

  def start(self, method: contract.Method, **changes) -> types.TrainState:
    adapter = self.adapter if method.trains_adapter else None
    state = jax.jit(method.init)(self.base, adapter)
    return dataclasses.replace(state, **changes)

  def batch(
    self, method: contract.Method | None = None, step: int = 0
  ) -> types.StepBatch:
    """Returns both parts, or those that the method plans to have at a step.

    A guided method's rollouts begin with given tokens; a step below 0 is the
    update on what was held back.
    """
    plan = contract.Plan(True, True) if method is None else method.plan(step)
    if step < 0:
      plan = contract.Plan(rollouts=False, demonstrations=True)
    rl = self.rl
    if method is not None and method.guide is not None:
      rl = begun(rl)
    if plan.old_logprobs and method is not None and method.reference:
      rl = dataclasses.replace(
        rl,
        old_logprobs=np.full(rl.weights.shape, -2.0, np.float32),
        ref_logprobs=np.full(rl.weights.shape, -2.1, np.float32),
      )
    return types.StepBatch(
      rl=rl if plan.rollouts else None,
      sft=self.sft if plan.demonstrations else None,
    )


def begun(batch: types.RLBatch) -> types.RLBatch:
  """Returns the batch with the first half of each odd row's tokens given."""
  counted = np.asarray(batch.weights) > 0
  place = counted.cumsum(axis=1)
  given = counted & (2 * place <= counted.sum(axis=1, keepdims=True))
  given[::2] = False
  return dataclasses.replace(batch, given=given.astype(np.float32))


def _scaled(optimizer, scale):
  def update(gradient, state, base):
    updates, state = optimizer.update(gradient, state, base)
    return jax.tree.map(lambda x: scale * x, updates), state

  return optax.GradientTransformation(optimizer.init, update)


def pairs(rng, count):
  draw = lambda low, high: rng.integers(
    0, VOCABULARY, rng.integers(low, high)
  ).astype(np.int32)
  return [(draw(1, 5), draw(1, 9)) for _ in range(count)]


def rl_batch(rng, count) -> types.RLBatch:
  plain = assemble.token_batch(pairs(rng, count), weighting.token_mean)
  questions = np.arange(count, dtype=np.int32) // 4
  correct = (np.arange(count) % 3 == 0).astype(np.float32)
  right = np.bincount(questions, correct) / np.bincount(questions)
  return types.RLBatch(
    **{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)},
    advantages=(rng.normal(size=(count, 1)) * (plain.weights > 0)).astype(
      np.float32
    ),
    rewards=rng.random(count).astype(np.float32),
    baselines=np.full(count, 0.5, np.float32),
    scored=np.ones(count, np.float32),
    sampler_logprobs=np.zeros(plain.tokens.shape, np.float32),
    old_logprobs=None,
    ref_logprobs=None,
    questions=questions,
    correct=correct,
    accuracy=right[questions].astype(np.float32),
  )


def batches(rng, *, sft: int, rl: int) -> types.StepBatch:
  """Returns so many rows of random tokens, of unequal lengths."""
  demonstrations = assemble.token_batch(pairs(rng, sft), weighting.token_mean)
  rollouts = rl_batch(rng, rl)
  expert = lambda batch: -rng.random(batch.tokens.shape, np.float32)
  return types.StepBatch(
    sft=dataclasses.replace(
      demonstrations,
      expert_logprobs=expert(demonstrations),
      group_advantages=rng.random((sft, 1), np.float32),
    ),
    rl=dataclasses.replace(rollouts, expert_logprobs=expert(rollouts)),
  )


@pytest.fixture
def world() -> World:
  return make_world()


def make_world() -> World:
  rng = np.random.default_rng(0)
  policy = tabular.policy(VOCABULARY)
  adapter = policy.init_adapter(jax.random.key(1))
  adapter["B"] = 0.3 * jax.random.normal(
    jax.random.key(2), adapter["B"].shape, jnp.float32
  )
  drawn = batches(rng, sft=6, rl=8)
  return World(
    policy=policy,
    base=policy.init(jax.random.key(0)),
    adapter=adapter,
    sft=drawn.sft,
    rl=drawn.rl,
  )
