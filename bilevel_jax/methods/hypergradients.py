"""How BRIDGE's three trees are to move: four forms, one signature.

  penalty   first derivatives only; the default
  unrolled  through K optimiser steps of the two bases
  implicit  by the implicit function theorem, at the two bases
  one_step  `unrolled` with one step, to first order in it

`docs/hypergradients.md` says when to use which. In the last three the RL loss
is differentiated twice, so its surrogate matters (`method.bridge.surrogate`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from bilevel_jax.bilevel import cooperative, implicit, unrolled
from bilevel_jax.bilevel import penalty as penalty_form
from bilevel_jax.bilevel.problem import (
  Agreement,
  Gradient,
  GradientFunction,
  Objective,
  Problem,
  agreement,
)
from bilevel_jax.methods import diagnostics, estimators
from bilevel_jax.models import lora
from bilevel_jax.types import Metrics, RLBatch, StepBatch, TrainState, Tree


class Levels(NamedTuple):
  """What the forms are made from."""

  problem: Problem
  """upper: the SFT loss of a TokenBatch; lower: the RL loss of an RLBatch."""
  gradient: Callable[[Objective], GradientFunction]
  """As in `contract.Setup`."""
  optimizers: Mapping[str, optax.GradientTransformation]
  """Of base, rl_only_base and adapter."""


def frozen(levels: Levels, targets: Sequence[str]) -> Levels:
  """Returns the levels with the adapter's targets held in both bases.

  They are no part of a gradient, a product or a norm, and weight decay does
  not move them either. Optimiser states have the same shapes.

  Args:
    targets: matrices of a layer, by name.
  """

  def of(objective: Objective) -> Objective:
    def evaluate(base: Tree, adapter: Tree, batch: Any):
      held = lora.map_targets(jax.lax.stop_gradient, base, targets)
      return objective(held, adapter, batch)

    return evaluate

  def holding(optimizer: optax.GradientTransformation):
    def update(updates: Tree, state: Tree, params: Tree = None):
      updates, state = optimizer.update(updates, state, params)
      return lora.map_targets(jnp.zeros_like, updates, targets), state

    return optax.GradientTransformation(optimizer.init, update)

  held = {
    name: holding(levels.optimizers[name]) for name in ("base", "rl_only_base")
  }
  return levels._replace(
    problem=Problem(*map(of, levels.problem)),
    optimizers={**levels.optimizers, **held},
  )


class Proposal(NamedTuple):
  """What one update is to do, and what it saw."""

  state: TrainState  # with the trees that the form has moved by itself
  gradients: dict[str, Tree]  # of the others, for their optimisers
  metrics: Metrics


Form: TypeAlias = Callable[[TrainState, StepBatch, jax.Array], Proposal]
"""(state, batch, penalty) -> Proposal."""


def penalty(options: estimators.Options, levels: Levels) -> Form:
  """Returns BRIDGE's penalty form: three gradients at the old parameters."""
  rebuilt = options.rl_only_base == "one_step"

  def propose(state, batch, penalty):
    def rebuild(lower: Gradient) -> Tree:
      return penalty_form.one_update(
        levels.optimizers["base"],
        state.optimizer_states["base"],
        state.base,
        lower.by_lower,
      )

    terms = penalty_form.terms(
      levels.problem,
      state.base,
      state.rl_only_base,
      state.adapter,
      batch.sft,
      batch.rl,
      gradient=levels.gradient,
      lower_only_batch=functools.partial(_rl_only_batch, options),
      rebuild=rebuild if rebuilt else None,
    )
    moves = penalty_form.combine(terms, penalty, options.gain_weight)
    gradients = {"base": moves.lower, "adapter": moves.upper}
    if not rebuilt:
      gradients["rl_only_base"] = moves.lower_only
    upper, lower, rl_only = terms
    return Proposal(
      state,
      gradients,
      {
        "sft/loss": upper.loss,
        "rl/loss": lower.loss,
        **diagnostics.parts_metrics(moves.direct, moves.gain),
        **_mix(agreement(upper.by_lower, lower.by_lower), penalty),
        **diagnostics.rollout_metrics(batch.rl, lower.aux),
        **diagnostics.rl_only_metrics(batch.rl, lower.aux, rl_only.aux),
      },
    )

  return propose


def unroll(options: estimators.Options, levels: Levels) -> Form:
  """Returns the form that differentiates through the optimiser's steps.

  Both bases are where their K steps took them; only the adapter is left to
  its optimiser. The cooperative gain is that of the moved bases.
  """
  upper, lower = map(levels.gradient, levels.problem)
  kept = options.rl_only_base != "one_step"
  through = {
    name: unrolled.unrolled(
      levels.optimizers[name],
      steps=options.inner_steps,
      mixed_product=estimators.mixed_product(options, "unrolled"),
    )
    for name in ("base", "rl_only_base")
  }
  # A copy that is rebuilt is the base after one RL update of its optimiser.
  copy = "rl_only_base" if kept else "base"

  def propose(state, batch, penalty):
    found = cooperative.cooperative(
      through["base"],
      through[copy],
      upper,
      lower,
      state.base,
      getattr(state, copy),
      state.adapter,
      batch.sft,
      batch.rl,
      weight=penalty,
      optimizer_state=state.optimizer_states["base"],
      lower_only_state=state.optimizer_states[copy],
      lower_only_batch=_unrolled_rl_only_batch(options),
    )
    state = estimators.moved(state, "base", found.joint)
    if kept:
      state = estimators.moved(state, "rl_only_base", found.lower_only)
    first = jax.tree.map(lambda x: x[0], found.joint.lower_aux)
    return Proposal(
      state,
      {"adapter": found.gradient},
      _metrics(batch.rl, found, first, penalty),
    )

  return propose


def by_implicit_function(options: estimators.Options, levels: Levels) -> Form:
  """Returns the form that takes both bases to be where they are heading."""
  upper, lower = map(levels.gradient, levels.problem)
  estimator = implicit.implicit(
    estimators.linear_solver(options),
    damping=options.damping,
    mixed_product=estimators.mixed_product(options, "implicit"),
  )

  def propose(state, batch, penalty):
    found = cooperative.cooperative(
      estimator,
      estimator,
      upper,
      lower,
      state.base,
      state.rl_only_base,
      state.adapter,
      batch.sft,
      batch.rl,
      weight=penalty,
      lower_only_batch=functools.partial(_rl_only_batch, options),
    )
    gradients = {
      "base": found.joint.upper.by_lower,
      "rl_only_base": found.lower_only.upper.by_lower,
      "adapter": found.gradient,
    }
    solved = found.joint.diagnostics, found.lower_only.diagnostics
    return Proposal(
      state,
      gradients,
      _metrics(batch.rl, found, found.joint.lower_aux, penalty)
      | {
        "bilevel/solver_residual": jnp.maximum(
          *(d["residual"] for d in solved)
        ),
        "bilevel/solver_iterations": sum(d["iterations"] for d in solved),
      },
    )

  return propose


def one_step(options: estimators.Options, levels: Levels) -> Form:
  """Returns the form that expands one step of both bases to first order.

  Nothing is evaluated after the step, so no cooperative gain is measured.
  """
  upper, lower = map(levels.gradient, levels.problem)
  optimizer = levels.optimizers["base"]

  def propose(state, batch, penalty):
    found = cooperative.first_order(
      upper,
      lower,
      state.base,
      state.adapter,
      batch.sft,
      batch.rl,
      weight=penalty,
      optimizer=optimizer,
      optimizer_state=state.optimizer_states["base"],
      mixed_product=estimators.mixed_product(options, "one_step"),
    )
    at_upper, at_lower = found.of_upper, found.of_lower
    gradients = {
      "base": penalty_form.mix(penalty, at_upper.by_lower, at_lower.by_lower),
      "adapter": found.gradient,
    }
    return Proposal(
      state,
      gradients,
      {
        "sft/loss": at_upper.loss,
        "rl/loss": at_lower.loss,
        **diagnostics.parts_metrics(found.direct, found.implicit),
        **_mix(agreement(at_upper.by_lower, at_lower.by_lower), penalty),
        **diagnostics.rollout_metrics(batch.rl, at_lower.aux),
      },
    )

  return propose


FORMS: dict[str, Callable[[estimators.Options, Levels], Form]] = {
  "penalty": penalty,
  "unrolled": unroll,
  "implicit": by_implicit_function,
  "one_step": one_step,
}


def _rl_only_batch(
  options: estimators.Options, batch: RLBatch, aux: dict[str, jax.Array]
) -> RLBatch:
  """The shared rollouts, as the RL-only copy's ratio needs them."""
  if options.rl_only_ratio == "on_policy":
    return dataclasses.replace(batch, old_logprobs=None, sampler_logprobs=None)
  if batch.old_logprobs is None:
    batch = dataclasses.replace(batch, old_logprobs=aux["logprobs"])
  return dataclasses.replace(batch, sampled_by_another=True)


def _unrolled_rl_only_batch(options: estimators.Options):
  # Old log-probs are given here (`Plan.old_logprobs`): no aux is needed. Both
  # bases move away from the policy that sampled: alike, neither KL has a ratio.
  return lambda batch, aux: dataclasses.replace(
    _rl_only_batch(options, batch, {}), sampled_by_another=False
  )


def _metrics(
  batch: RLBatch,
  found: cooperative.Cooperative,
  before: cooperative.JointAux,
  penalty: jax.Array,
) -> dict:
  """What the two forms with an F of two terms log."""
  return {
    "sft/loss": before.upper_loss,
    "rl/loss": before.lower_loss,
    **diagnostics.parts_metrics(found.direct, found.implicit),
    **_mix(before.agreement, penalty),
    **diagnostics.rollout_metrics(batch, before.lower),
    **diagnostics.rl_only_metrics(
      batch, found.joint.upper.aux.lower, found.lower_only.upper.aux
    ),
  }


def _mix(agreement: Agreement, penalty: jax.Array) -> dict:
  return diagnostics.gradient_metrics(
    agreement, sft_weight=1 - penalty, rl_weight=penalty
  )
