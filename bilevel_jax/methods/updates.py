"""The updates that methods are made of: by SFT, by RL, by both."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from bilevel_jax.bilevel import penalty, problem
from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, diagnostics
from bilevel_jax.types import RLBatch, StepBatch, TokenBatch, TrainState, Tree


@dataclasses.dataclass(frozen=True)
class SFTRate:
  """Settings of a method whose SFT has an optimiser of its own."""

  sft_learning_rate: float | None = setting(
    None, "peak learning rate of SFT; default: the base's", at_least=0
  )


Update: TypeAlias = Callable[[TrainState, StepBatch], contract.Updated]


def descent(
  setup: contract.Setup,
  part: Literal["sft", "rl"],
  *,
  objective: problem.Objective | None = None,
  optimizer: optax.GradientTransformation | None = None,
) -> Update:
  """Returns base <- base - lr grad L(base).

  Args:
    part: L_SFT on demonstrations, or L_RL on the policy's own rollouts.
    objective: in place of the plain loss.
    optimizer: in place of the base's.
  """
  plain = {"sft": setup.sft_loss, "rl": setup.rl_loss}[part]
  gradient = setup.gradient(objective or plain())
  optimizers = {"base": optimizer or setup.optimizers["base"]}

  def update(state: TrainState, batch: StepBatch):
    found = gradient(state.base, None, getattr(batch, part))
    state, norms = contract.advance(state, optimizers, {"base": found.by_lower})
    finite = metrics = {f"{part}/loss": found.loss, **norms}
    if part == "rl":
      metrics = metrics | diagnostics.rollout_metrics(batch.rl, found.aux)
    return contract.Updated(state, metrics, finite)

  return update


def rl_method(
  setup: contract.Setup,
  *,
  objective: problem.Objective | None = None,
  batches: contract.Batches = contract.on_policy,
  needs: contract.Needs = contract.Needs(),
) -> contract.Method:
  """Returns the method whose every update is of RL, and that keeps no state."""
  plan = contract.Plan(rollouts=True, demonstrations=False)
  return contract.Method(
    needs=needs,
    init=lambda base, adapter: contract.new_state(setup.optimizers, base=base),
    plan=lambda step, scalars: plan,
    update=descent(setup, "rl", objective=objective),
    batches=batches,
  )


def by_turns(
  setup: contract.Setup,
  options: SFTRate,
  rl_updates: int | None = None,
  sft_updates: int | None = None,
) -> tuple[Callable[[Tree, Tree | None], TrainState], Update]:
  """Returns the init and the update of RL or SFT, as the batch has rollouts.

  Each has an optimiser of its own.

  Args:
    rl_updates: of the run, for its schedule; None: as many as the run has.
    sft_updates: the same for the updates by SFT.
  """
  total = setup.total_updates
  rl_optimizer = setup.base_optimizer(
    None, total if rl_updates is None else rl_updates
  )
  sft_optimizer = setup.base_optimizer(
    options.sft_learning_rate, total if sft_updates is None else sft_updates
  )
  by_rl = descent(setup, "rl", optimizer=rl_optimizer)
  by_sft = descent(setup, "sft", optimizer=sft_optimizer)

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    extra = {"idle": sft_optimizer.init(base)}
    return contract.new_state({"base": rl_optimizer}, base=base, extra=extra)

  def update(state: TrainState, batch: StepBatch):
    if batch.rl is not None:
      return by_rl(state, batch)
    done = by_sft(_swapped(state), batch)
    return done._replace(state=_swapped(done.state))

  return init, update


def _swapped(state: TrainState) -> TrainState:
  """The state with the idle optimiser's state in the other's place."""
  return dataclasses.replace(
    state,
    optimizer_states={"base": state.extra["idle"]},
    extra={"idle": state.optimizer_states["base"]},
  )


class Mix(NamedTuple):
  """What a joint update makes of its two gradients."""

  sft_weight: jax.typing.ArrayLike
  rl_weight: jax.typing.ArrayLike
  extra: Any = None
  """The method's own state after the update; None: as it was."""


class Found(NamedTuple):
  """What a joint update has at hand before it weighs."""

  state: TrainState
  batch: StepBatch[RLBatch, TokenBatch]
  sft: problem.Gradient
  rl: problem.Gradient
  agreement: problem.Agreement
  """Of the base's two gradients, SFT's first."""


Weigh: TypeAlias = Callable[[Found], Mix]


def joint(
  setup: contract.Setup,
  weigh: Weigh,
  *,
  objective: problem.Objective | None = None,
  rl_objective: problem.Objective | None = None,
  extra: Callable[[Tree], Any] = lambda base: None,
  adapter: bool = False,
) -> contract.Method:
  """Returns the method base <- base - lr (s grad L_SFT + r grad L_RL).

  A gradient whose weight is exactly 0 is absent. An adapter in the state moves
  likewise, by its own optimiser.

  Args:
    weigh: decides s and r, once both gradients are known.
    objective: in place of the plain SFT loss.
    rl_objective: in place of the plain RL loss.
    extra: base -> the method's own state before the first update.
    adapter: whether there is an adapter that moves, too.
  """
  sft_gradient = setup.gradient(objective or setup.sft_loss())
  rl_gradient = setup.gradient(rl_objective or setup.rl_loss())

  def init(base: Tree, given: Tree | None) -> TrainState:
    trees = {"base": base, "adapter": given} if adapter else {"base": base}
    return contract.new_state(setup.optimizers, extra=extra(base), **trees)

  def update(state: TrainState, batch: StepBatch[RLBatch, TokenBatch]):
    by_rl = rl_gradient(state.base, state.adapter, batch.rl)
    # One after the other, so that only one's activations are in memory.
    by_rl, base = jax.lax.optimization_barrier((by_rl, state.base))
    by_sft = sft_gradient(base, state.adapter, batch.sft)
    agreement = problem.agreement(by_sft.by_lower, by_rl.by_lower)
    mix = weigh(Found(state, batch, by_sft, by_rl, agreement))
    total = jax.tree.map(
      lambda s, r: (
        penalty.weigh(mix.sft_weight, s) + penalty.weigh(mix.rl_weight, r)
      ),
      {"base": by_sft.by_lower, "adapter": by_sft.by_upper},
      {"base": by_rl.by_lower, "adapter": by_rl.by_upper},
    )
    if state.adapter is None:
      del total["adapter"]
    state, norms = contract.advance(state, setup.optimizers, total)
    if mix.extra is not None:
      state = dataclasses.replace(state, extra=mix.extra)
    losses = {"sft/loss": by_sft.loss, "rl/loss": by_rl.loss}
    of_gradients = diagnostics.gradient_metrics(
      agreement, sft_weight=mix.sft_weight, rl_weight=mix.rl_weight
    )
    return contract.Updated(
      state,
      {
        **losses,
        "mix/sft_weight": jnp.float32(mix.sft_weight),
        "mix/rl_weight": jnp.float32(mix.rl_weight),
        **of_gradients,
        **diagnostics.rollout_metrics(batch.rl, by_rl.aux),
        **norms,
      },
      must_be_finite=(
        losses,
        norms,
        agreement.upper_norm,
        agreement.lower_norm,
      ),
    )

  plan = contract.Plan(rollouts=True, demonstrations=True)
  return contract.Method(
    needs=contract.Needs(demonstrations="sampled", adapter=adapter, trees=3),
    init=init,
    plan=lambda step, scalars: plan,
    update=update,
  )


def reference_copy(setup: contract.Setup, base: Tree) -> dict:
  """Returns {"reference": a copy of base}, or {} where there is no KL term."""
  if (dtype := setup.reference_dtype) is None:
    return {}
  # A copy of its own: the two are donated to the next update separately.
  return {"reference": jax.tree.map(lambda x: jnp.copy(x).astype(dtype), base)}
