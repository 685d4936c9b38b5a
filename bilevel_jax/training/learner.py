"""The method of a run with everything it is made of, compiled for a mesh."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel_jax import config, methods
from bilevel_jax.bilevel.problem import Problem
from bilevel_jax.methods import (
  accumulation,
  contract,
  hypergradients,
  terms,
)
from bilevel_jax.models import attention
from bilevel_jax.objectives import policy_gradient, token_weights, weighting
from bilevel_jax.rollout import assemble, packing
from bilevel_jax.training import optimizers, programs, sharding
from bilevel_jax.types import Policy, TrainState, Tree


class Learner(NamedTuple):
  """The method with its compiled programs and how a batch is weighted."""

  method: contract.Method
  programs: programs.Programs
  packing: packing.Packing
  skip_idle: bool  # leave rollouts without advantage out of the update
  rollout_columns: int  # of the longest prompt and completion that may be
  demonstration_columns: int
  rl_weighting: weighting.Weighting
  sft_weighting: weighting.Weighting


def build(
  settings: config.Config, policy: Policy, mesh: jax.sharding.Mesh
) -> Learner:
  """Returns the method of the settings, compiled for a mesh.

  Args:
    settings: of the run.
    policy: the model.
    mesh: of its devices.

  Raises:
    ConfigError: an unknown method, or a mesh that does not divide the state.
  """
  method, rl = build_method(settings, policy), settings.rl
  compiled = programs.compile_programs(
    method,
    policy,
    temperature=settings.rollout.temperature,
    adapter_scale=settings.adapter.scale,
    chunk=settings.model.logprob_chunk,
    state_shardings=sharding.shardings(abstract_state(method, policy), mesh),
  )
  return Learner(
    method,
    compiled,
    how_to_pack(settings, mesh),
    settings.training.skip_idle_rollouts
    and rl.kl_coef == 0
    and not method.every_rollout,
    assemble.bucket(
      settings.data.max_prompt_tokens + settings.rollout.max_new_tokens
    ),
    assemble.bucket(settings.data.max_demonstration_tokens),
    weighting.build(rl.weighting, settings.rollout.max_new_tokens),
    weighting.build(
      settings.sft.weighting, settings.data.max_demonstration_tokens
    ),
  )


def build_method(settings: config.Config, policy: Policy) -> contract.Method:
  """Returns the method of the settings, nothing compiled.

  Raises:
    ConfigError: an unknown method.
  """
  make_method = methods.find(settings.method.name)
  total_updates = settings.steps * updates_per_step(settings)
  rollout, rl = settings.rollout, settings.rl

  def base_optimizer(
    learning_rate: float | None, updates: int, scale: float = 1.0
  ):
    group = settings.optimizer.base
    peak = group.learning_rate if learning_rate is None else learning_rate
    return optimizers.build(
      dataclasses.replace(group, learning_rate=scale * peak), updates
    )

  rl_only_optimizer = base_optimizer(None, total_updates)
  if settings.method.rl_only_optimizer == "sgd":
    rl_only_optimizer = optimizers.build(
      config.Optimizer(
        name="sgd",
        learning_rate=settings.optimizer.base.learning_rate,
        clip_norm=settings.optimizer.base.clip_norm,
      ),
      total_updates,
    )
  chunk = settings.model.logprob_chunk
  twice = hypergradients.second_order(settings.method)
  dice = twice and settings.method.surrogate == "dice"
  if rl.dual_clip is not None and (dice or rl.clip != "objective"):
    raise config.ConfigError(
      "rl.dual_clip is a bound of rl.clip=objective, in all but the surrogate "
      f"dice, got {rl.dual_clip} with "
      + ("method.surrogate dice" if dice else f"rl.clip {rl.clip}")
    )
  if dice and (rl.ratio, rl.clip) != ("token", "objective"):
    raise config.ConfigError(
      "method.surrogate=dice has no ratio and no clip: rl.ratio must be token "
      f"and rl.clip objective, or the surrogate fixed_sample, got {rl.ratio} "
      f"and {rl.clip}"
    )
  supervised = functools.partial(
    terms.sft_objective,
    policy,
    chunk=chunk,
    token_weight=token_weights.build(
      settings.sft.token_weight, settings.sft.trust_region
    ),
  )
  reinforced = functools.partial(
    terms.rl_objective,
    policy,
    temperature=rollout.temperature,
    clip_low=rl.clip_low,
    clip_high=rl.clip_high,
    dual_clip=rl.dual_clip,
    kl_coef=rl.kl_coef,
    chunk=chunk,
    importance_cap=rl.importance_cap,
    ratio=rl.ratio,
    clip=rl.clip,
    with_entropy=settings.logging.entropy,
    surrogate="dice" if dice else "fixed_sample",
  )
  return make_method(
    settings.method,
    contract.Ingredients(
      problem=Problem(upper=supervised(), lower=reinforced()),
      gradient=accumulation.gradient,
      optimizers={
        "base": base_optimizer(None, total_updates),
        "adapter": optimizers.build(settings.optimizer.adapter, total_updates),
        "rl_only_base": rl_only_optimizer,
      },
      total_updates=total_updates,
      supervised=supervised,
      reinforced=reinforced,
      advantages=functools.partial(
        policy_gradient.group_advantages, normalise=rl.advantage
      ),
      base_optimizer=base_optimizer,
      updates_per_step=updates_per_step(settings),
      reference_dtype=reference_dtype(settings),
      seed=settings.seed,
    ),
  )


def how_to_pack(
  settings: config.Config,
  mesh: sharding.Mesh,
) -> packing.Packing:
  """Returns how rows are filled, given what attention can serve.

  Raises:
    ConfigError: packing is asked of a kernel that cannot.
  """
  training, model = settings.training, settings.model
  kernel = attention.choose(
    model.attention, jax.default_backend(), model.compute_dtype
  )
  able = kernel in attention.TAKES_SEGMENTS
  if training.packing == "on" and not able:
    raise config.ConfigError(
      f"training.packing=on needs model.attention to be one of "
      f"{', '.join(sorted(attention.TAKES_SEGMENTS))}, got {kernel}"
    )
  return packing.Packing(
    micro_batch_tokens=training.micro_batch_tokens,
    row_tokens=training.row_tokens,
    row_multiple=mesh.shape["data"] * mesh.shape["fsdp"],
    several=able and training.packing != "off",
  )


def abstract_state(method: contract.Method, policy: Policy) -> TrainState:
  """Returns the shapes and dtypes of a method's state; computes nothing."""

  def make() -> TrainState:
    keys = jax.random.split(jax.random.key(0))
    adapter = policy.init_adapter(keys[1]) if method.trains_adapter else None
    return method.init(policy.init(keys[0]), adapter)

  return jax.eval_shape(make)


def initial_state(
  settings: config.Config, learner: Learner, policy: Policy, base: Tree
) -> TrainState:
  """Returns the state before the first update; `base` is not consumed.

  Args:
    settings: for the seed of the adapter.
    learner: of the run.
    policy: the model.
    base: to start from.
  """
  adapter = None
  if learner.method.trains_adapter:
    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    adapter = jax.jit(policy.init_adapter)(key)
  return learner.programs.init(jax.tree.map(jnp.copy, base), adapter)


def updates_per_step(settings: config.Config) -> int:
  """Returns the optimiser updates of one step."""
  return settings.rl.updates_per_rollout * settings.rl.passes_per_rollout


def reference_dtype(settings: config.Config) -> str | None:
  """Returns the dtype of the KL's reference policy, None without a KL term."""
  return settings.model.compute_dtype if settings.rl.kl_coef > 0 else None
