"""Cold start: SFT for a share of the steps, then RL. A strong baseline."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import jax.numpy as jnp
import optax

from bilevel_jax.bilevel import problem
from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, updates
from bilevel_jax.types import StepBatch, TrainState, Tree


@dataclasses.dataclass(frozen=True)
class Stages(updates.SFTRate):
  sft_share: float = setting(
    0.5, "share of the steps that are of SFT", at_least=0, at_most=1
  )


Reference: TypeAlias = Literal["after_sft", "start"]


@dataclasses.dataclass(frozen=True)
class Options(Stages):
  reference: Reference = setting(
    "after_sft", "policy that the KL of the RL stage is taken to"
  )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns SFT, then RL."""
  return stages(options, setup, reference=options.reference)


def stages(
  options: Stages,
  setup: contract.Setup,
  *,
  reference: Reference = "after_sft",
  objective: problem.Objective | None = None,
  sft_rate: float = 1.0,
  second: Callable[[optax.GradientTransformation], updates.Update]
  | None = None,
) -> contract.Method:
  """Returns the two stages, each with a fresh optimiser and its own schedule.

  Args:
    reference: of the second stage's KL: the policy that the first one made, or
      the one before it.
    objective: in place of the plain SFT loss.
    sft_rate: what the first stage's learning rate is multiplied by.
    second: optimiser -> the second stage's update, in place of RL's.
  """
  per_step = setup.updates_per_step
  first_steps = sft_steps(options, setup)
  sft_updates = per_step * first_steps
  sft_optimizer = setup.base_optimizer(
    options.sft_learning_rate, sft_updates, sft_rate
  )
  rl_optimizer = setup.base_optimizer(None, setup.total_updates - sft_updates)
  by_sft = updates.descent(
    setup, "sft", objective=objective, optimizer=sft_optimizer
  )
  if second is None:
    by_rl = updates.descent(setup, "rl", optimizer=rl_optimizer)
  else:
    by_rl = second(rl_optimizer)
  keeps = reference == "after_sft"
  copy = lambda base: updates.reference_copy(setup, base) if keeps else {}

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    # Not told by the count of updates: one that was skipped is not counted.
    extra = {"rl_started": jnp.zeros((), bool), **copy(base)}
    return contract.new_state({"base": sft_optimizer}, base=base, extra=extra)

  def update(state: TrainState, batch: StepBatch):
    if batch.rl is None:
      done = by_sft(state, batch)
      extra = done.state.extra | copy(done.state.base)
      return done._replace(state=dataclasses.replace(done.state, extra=extra))
    started = state.extra["rl_started"]
    optimizer_state = optax.tree.where(
      started, state.optimizer_states["base"], rl_optimizer.init(state.base)
    )
    state = dataclasses.replace(
      state,
      optimizer_states={"base": optimizer_state},
      extra=state.extra | {"rl_started": jnp.ones((), bool)},
    )
    return by_rl(state, batch)

  def plan(step: int, scalars: Mapping[str, float]) -> contract.Plan:
    first = step < first_steps
    return contract.Plan(rollouts=not first, demonstrations=first)

  has_copy = keeps and setup.reference_dtype is not None
  return contract.Method(
    needs=contract.Needs(
      rollouts=first_steps < setup.steps,
      demonstrations="required" if first_steps else None,
      reference="own" if has_copy else "start",
    ),
    init=init,
    plan=plan,
    update=update,
  )


def sft_steps(options: Stages, setup: contract.Setup) -> int:
  """Returns the steps of the first stage."""
  return round(options.sft_share * setup.steps)
