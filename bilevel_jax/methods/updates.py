"""The updates that methods are made of: by SFT, by RL, by both."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from bilevel_jax.bilevel import penalty, problem
from bilevel_jax.methods import contract, diagnostics
from bilevel_jax.types import Metrics, StepBatch, TrainState, Tree

Update: TypeAlias = Callable[
  [TrainState, StepBatch], tuple[TrainState, Metrics]
]


def supervised(
  ingredients: contract.Ingredients,
  *,
  objective: problem.Objective | None = None,
  optimizer: optax.GradientTransformation | None = None,
) -> Update:
  """Returns base <- base - lr grad L_SFT(base), on demonstrations.

  Args:
    ingredients: of the method.
    objective: in place of the problem's SFT loss.
    optimizer: in place of the base's.
  """
  gradient = ingredients.gradient(objective or ingredients.problem.upper)
  optimizers = {"base": optimizer or ingredients.optimizers["base"]}

  def update(state: TrainState, batch: StepBatch):
    sft = gradient(state.base, None, batch.sft)
    state, norms = contract.advance(state, optimizers, {"base": sft.base})
    return state, {"sft/loss": sft.loss, **norms}

  return update


def reinforced(
  ingredients: contract.Ingredients,
  *,
  objective: problem.Objective | None = None,
  optimizer: optax.GradientTransformation | None = None,
) -> Update:
  """Returns base <- base - lr grad L_RL(base), on the policy's own rollouts.

  Args:
    ingredients: of the method.
    objective: in place of the problem's RL loss.
    optimizer: in place of the base's.
  """
  gradient = ingredients.gradient(objective or ingredients.problem.lower)
  optimizers = {"base": optimizer or ingredients.optimizers["base"]}

  def update(state: TrainState, batch: StepBatch):
    rl = gradient(state.base, None, batch.rl)
    state, norms = contract.advance(state, optimizers, {"base": rl.base})
    return state, {
      "rl/loss": rl.loss,
      **diagnostics.rollout_metrics(batch.rl, rl.aux),
      **norms,
    }

  return update


def by_turns(
  ingredients: contract.Ingredients,
  *,
  rl_optimizer: optax.GradientTransformation,
  sft_optimizer: optax.GradientTransformation,
) -> tuple[Callable[[Tree, Tree | None], TrainState], Update]:
  """Returns the init and the update of RL or SFT, as the batch has rollouts.

  Args:
    ingredients: of the method.
    rl_optimizer: of the updates with rollouts.
    sft_optimizer: of those without.
  """
  rl = reinforced(ingredients, optimizer=rl_optimizer)
  sft = supervised(ingredients, optimizer=sft_optimizer)

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    del adapter
    return dataclasses.replace(
      contract.new_state({"base": rl_optimizer}, base=base),
      extra={"idle": sft_optimizer.init(base)},
    )

  def update(state: TrainState, batch: StepBatch):
    if batch.rl is not None:
      return rl(state, batch)
    state, metrics = sft(swapped(state), batch)
    return swapped(state), metrics

  return init, update


def swapped(state: TrainState) -> TrainState:
  """Returns the state with the idle optimiser's state in the other's place."""
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


Weigh: TypeAlias = Callable[
  [TrainState, problem.Gradient, problem.Gradient, problem.Agreement], Mix
]
"""(state, SFT gradient, RL gradient, how far they agree) -> Mix."""


def joint(
  ingredients: contract.Ingredients,
  weigh: Weigh,
  *,
  objective: problem.Objective | None = None,
  rl_objective: problem.Objective | None = None,
) -> Update:
  """Returns base <- base - lr (s grad L_SFT + r grad L_RL), s and r by `weigh`.

  A gradient whose weight is exactly 0 is absent. An adapter in the state moves
  likewise, by its own optimiser.

  Args:
    ingredients: of the method.
    weigh: decides s and r, once both gradients are known.
    objective: in place of the problem's SFT loss.
    rl_objective: in place of the problem's RL loss.
  """
  sft_gradient = ingredients.gradient(objective or ingredients.problem.upper)
  rl_gradient = ingredients.gradient(rl_objective or ingredients.problem.lower)

  def update(state: TrainState, batch: StepBatch):
    rl = rl_gradient(state.base, state.adapter, batch.rl)
    # One after the other, so that only one's activations are in memory.
    rl, base = jax.lax.optimization_barrier((rl, state.base))
    sft = sft_gradient(base, state.adapter, batch.sft)
    agreement = problem.agreement(sft.base, rl.base)
    mix = weigh(state, sft, rl, agreement)
    total = jax.tree.map(
      lambda s, r: (
        penalty.weigh(mix.sft_weight, s) + penalty.weigh(mix.rl_weight, r)
      ),
      {"base": sft.base, "adapter": sft.adapter},
      {"base": rl.base, "adapter": rl.adapter},
    )
    if state.adapter is None:
      del total["adapter"]
    state, norms = contract.advance(state, ingredients.optimizers, total)
    if mix.extra is not None:
      state = dataclasses.replace(state, extra=mix.extra)
    return state, {
      "sft/loss": sft.loss,
      "rl/loss": rl.loss,
      "mix/sft_weight": jnp.float32(mix.sft_weight),
      "mix/rl_weight": jnp.float32(mix.rl_weight),
      **diagnostics.gradient_metrics(
        agreement, sft_weight=mix.sft_weight, rl_weight=mix.rl_weight
      ),
      **diagnostics.rollout_metrics(batch.rl, rl.aux),
      **norms,
    }

  return update


def joint_method(
  ingredients: contract.Ingredients,
  weigh: Weigh,
  *,
  objective: problem.Objective | None = None,
  rl_objective: problem.Objective | None = None,
  extra: Callable[[Tree], Any] = lambda base: {},
  adapter: bool = False,
) -> contract.Method:
  """Returns the method whose every update is joint, with its own state.

  Args:
    ingredients: of the method.
    weigh: as in `joint`.
    objective: as in `joint`.
    rl_objective: as in `joint`.
    extra: base -> the method's own state before the first update.
    adapter: whether there is an adapter that moves, too.
  """

  def init(base: Tree, given: Tree | None) -> TrainState:
    trees = {"base": base, "adapter": given} if adapter else {"base": base}
    return dataclasses.replace(
      contract.new_state(ingredients.optimizers, **trees), extra=extra(base)
    )

  plan = contract.Plan(rollouts=True, demonstrations=True)
  return contract.Method(
    trains_adapter=adapter,
    init=init,
    plan=lambda step: plan,
    update=joint(
      ingredients, weigh, objective=objective, rl_objective=rl_objective
    ),
  )


def reference_copy(ingredients: contract.Ingredients, base: Tree) -> dict:
  """Returns {"reference": a copy of base}, or {} where there is no KL term."""
  if (dtype := ingredients.reference_dtype) is None:
    return {}
  # A copy of its own: the two are donated to the next update separately.
  return {"reference": jax.tree.map(lambda x: jnp.copy(x).astype(dtype), base)}
