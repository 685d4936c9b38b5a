"""The method of a run with everything it is made of, compiled for a mesh."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax import config, errors, methods, own_code
from bilevel_jax.methods import accumulation, contract, terms
from bilevel_jax.models import attention
from bilevel_jax.objectives import (
  divergences,
  policy_gradient,
  token_weights,
  weighting,
)
from bilevel_jax.random_streams import Stream
from bilevel_jax.rollout import packing, sizes
from bilevel_jax.training import optimizers, programs, sharding
from bilevel_jax.types import Policy, TokenBatch, TrainState, Tree

_SMALL_SHARE = 0.05
_ONE = contract.DemonstrationGroups(members=np.zeros(1, np.int32))


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
  settings: config.Config,
  policy: Policy,
  mesh: jax.sharding.Mesh,
  groups: contract.DemonstrationGroups = _ONE,
) -> Learner:
  """Returns the method of the settings, compiled for a mesh.

  Args:
    groups: those of the run's demonstrations, with a member for each.

  Raises:
    ConfigError: an unknown method, or a mesh that does not divide the state.
  """
  method = build_method(settings, policy, groups)
  rl = settings.rl
  compiled = programs.compile_programs(
    lambda policy: build_method(settings, policy, groups),
    policy,
    temperature=settings.rollout.temperature,
    adapter_scale=settings.adapter.scale,
    chunk=settings.model.logprob_chunk,
    state_shardings=sharding.state_shardings(
      abstract_state(method, policy), mesh, method.placement
    ),
  )
  return Learner(
    method,
    compiled,
    how_to_pack(settings, mesh, policy),
    settings.training.skip_idle_rollouts
    and rl.kl_coef == 0
    and not method.needs.every_rollout,
    sizes.columns(
      settings.data.max_prompt_tokens + settings.rollout.max_new_tokens
    ),
    sizes.columns(settings.data.max_demonstration_tokens),
    **_weightings(settings),
  )


def _weightings(settings: config.Config) -> dict[str, weighting.Weighting]:
  return {
    "rl_weighting": weighting.build(
      settings.rl.weighting, settings.rollout.max_new_tokens
    ),
    "sft_weighting": weighting.build(
      settings.sft.weighting, settings.data.max_demonstration_tokens
    ),
  }


def build_method(
  settings: config.Config,
  policy: Policy,
  groups: contract.DemonstrationGroups = _ONE,
) -> contract.Method:
  """Returns the method of the settings, nothing compiled.

  Raises:
    ConfigError: an unknown method, or one that these settings cannot have.
  """
  rl, model = settings.rl, settings.model

  def base_optimizer(
    learning_rate: float | None,
    updates: int,
    scale: float = 1.0,
    plain: bool = False,
  ):
    group = settings.optimizer.base
    peak = learning_rate
    if peak is None:
      peak = settings.learning_rate("base")
    if plain:
      group = config.Optimizer(name="sgd", clip_norm=group.clip_norm)
    return optimizers.build(
      dataclasses.replace(group, learning_rate=scale * peak), updates
    )

  total_updates = settings.total_updates
  adapter_optimizer = optimizers.build(
    dataclasses.replace(
      settings.optimizer.adapter,
      learning_rate=settings.learning_rate("adapter"),
    ),
    total_updates,
  )
  weightings = _weightings(settings)
  numbers = policy_gradient.PolicyGradient(
    **{
      field.name: getattr(rl, field.name)
      for field in dataclasses.fields(policy_gradient.PolicyGradient)
    }
  )
  method = _made(
    settings.method,
    contract.Setup(
      sft_loss=functools.partial(
        terms.sft_objective,
        policy,
        chunk=model.logprob_chunk,
        token_weight=token_weights.build(
          settings.sft.token_weight, settings.sft.trust_region
        ),
      ),
      rl_loss=functools.partial(
        terms.rl_objective,
        policy,
        numbers=numbers,
        temperature=settings.rollout.temperature,
        chunk=model.logprob_chunk,
        ratio=rl.ratio,
        clip=rl.clip,
        kl_estimate=rl.kl_estimate,
        with_entropy=settings.logging.entropy,
      ),
      teacher=teaching(
        policy,
        temperature=settings.rollout.temperature,
        chunk=model.logprob_chunk,
      ),
      gradient=accumulation.gradient,
      optimizers={
        "base": base_optimizer(None, total_updates),
        "adapter": adapter_optimizer,
      },
      base_optimizer=base_optimizer,
      advantages=functools.partial(
        policy_gradient.group_advantages, normalise=rl.advantage
      ),
      as_one_batch=functools.partial(
        weighting.as_one_batch,
        rl=weightings["rl_weighting"],
        sft=weightings["sft_weighting"],
      ),
      total_updates=total_updates,
      updates_per_step=settings.updates_per_step,
      adapter_targets=settings.adapter.targets,
      reference_dtype=reference_dtype(settings),
      demonstration_groups=groups,
      seed=settings.seed,
    ),
  )
  _check_levels(settings, method.needs)
  return method


def _check_levels(settings: config.Config, needs: contract.Needs) -> None:
  adapter = settings.adapter
  if settings.model.train == "all" or not needs.adapter:
    return
  if not adapter.upper_targets:
    raise errors.ConfigError(
      f"the method {settings.method.name} has an adapter in its upper level, "
      "beside the one that model.train=adapter trains: adapter.upper_targets "
      "must name its matrices, which adapter.targets must leave, got none"
    )


def teaching(
  policy: Policy, *, temperature: float, chunk: int
) -> contract.Teaching:
  """Returns what a teacher of a policy's architecture thinks of tokens.

  Args:
    chunk: token positions whose logits are in memory at a time.
  """

  def states(base: Tree, batch: TokenBatch) -> jax.Array:
    _, found = accumulation.map_micro_batches(
      lambda part: ((), terms.token_states(policy, base, None, part)), batch
    )
    return jax.lax.stop_gradient(found)

  def divergence(
    base: Tree, *, kind: divergences.Kind, top: int | None
  ) -> terms.Divergence:
    return lambda states, unembedding, theirs: divergences.of_states(
      states,
      unembedding,
      divergences.Teacher(theirs, policy.unembedding(base)),
      kind=kind,
      top=top,
      temperature=temperature,
      chunk=chunk,
      without_token=policy.without_token,
    )

  return contract.Teaching(
    logprobs=programs.scoring(policy, temperature=temperature, chunk=chunk),
    states=states,
    divergence=divergence,
  )


def _made(method: config.Method, setup: contract.Setup) -> contract.Method:
  build = methods.find(method.name).build
  if method.name in methods.METHODS:
    return build(method.own, setup)
  with own_code.told(f"method.name: {method.name!r} raised"):
    made = build(method.own, setup)
  if not isinstance(made, contract.Method):
    raise errors.ConfigError(
      f"method.name: {method.name!r} must return a methods.contract.Method, "
      f"got {made!r:.50}"
    )
  return made


def how_to_pack(
  settings: config.Config, mesh: sharding.Mesh, policy: Policy | None = None
) -> packing.Packing:
  """Returns how rows are filled, given what attention can serve.

  Where the unembedding is a small part of the model, log-probs come in one
  size: those that nobody wants cost less than programs that leave them out.

  Args:
    policy: whose parameters say so; None: it is not known.

  Raises:
    ConfigError: packing is asked of a kernel that cannot.
  """
  training, model = settings.training, settings.model
  kernel = attention.choose(model.attention, jax.default_backend(), model.dtype)
  able = kernel in attention.TAKES_SEGMENTS
  if training.packing == "on" and not able:
    raise errors.ConfigError(
      f"training.packing=on needs model.attention to be one of "
      f"{', '.join(sorted(attention.TAKES_SEGMENTS))}, got {kernel}"
    )
  return packing.Packing(
    micro_batch_tokens=training.micro_batch_tokens,
    row_tokens=training.row_tokens,
    row_multiple=mesh.shape["data"] * mesh.shape["fsdp"],
    several=able and training.packing != "off",
    log_prob_sizes=1 if policy and _has_small_unembedding(policy) else 4,
  )


def _has_small_unembedding(policy: Policy) -> bool:
  init = policy.init_frozen or policy.init
  base = jax.eval_shape(init, jax.random.key(0))
  total = sum(x.size for x in jax.tree.leaves(base))
  table = jax.eval_shape(
    lambda base: programs.bound(policy, base).unembedding(base), base
  )
  return table.size < _SMALL_SHARE * total


def abstract_state(method: contract.Method, policy: Policy) -> TrainState:
  """Returns the shapes and dtypes of a method's state; computes nothing."""

  def make() -> TrainState:
    keys = jax.random.split(jax.random.key(0))
    adapter = policy.init_adapter(keys[1]) if method.needs.adapter else None
    return method.init(policy.init(keys[0]), adapter)

  return jax.eval_shape(make)


def initial_state(
  settings: config.Config, learner: Learner, policy: Policy, base: Tree
) -> TrainState:
  """Returns the state before the first update; `base` is not consumed."""
  adapter = None
  if learner.method.needs.adapter:
    key = Stream.ADAPTER.key(settings.seed)
    adapter = jax.jit(policy.init_adapter)(key)
  return learner.programs.init(jax.tree.map(jnp.copy, base), adapter)


def reference_dtype(settings: config.Config) -> str | None:
  """Returns the dtype of the KL's reference policy, None without a KL term."""
  return settings.model.dtype if settings.rl.kl_coef > 0 else None
