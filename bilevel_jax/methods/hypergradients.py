"""How BRIDGE's three trees are to move: four forms, one signature.

  penalty   first derivatives only; the default
  unrolled  through K optimiser steps of the two bases
  implicit  by the implicit function theorem, at the two bases
  one_step  `unrolled` with one step, to first order in it

`docs/hypergradients.md` says when to use which. In the last three the RL loss
is differentiated twice, so its surrogate matters (`method.surrogate`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from bilevel_jax import config
from bilevel_jax.bilevel import cooperative, implicit, unrolled
from bilevel_jax.bilevel import penalty as penalty_form
from bilevel_jax.bilevel.mixed_mode import MixedProduct
from bilevel_jax.bilevel.problem import (
  Agreement,
  Gradient,
  Hypergradient,
  agreement,
)
from bilevel_jax.methods import contract, diagnostics
from bilevel_jax.types import Metrics, RLBatch, StepBatch, TrainState, Tree


class Proposal(NamedTuple):
  """What one update is to do, and what it saw."""

  state: TrainState  # with the trees that the form has moved by itself
  gradients: dict[str, Tree]  # of the others, for their optimisers
  metrics: Metrics


Form: TypeAlias = Callable[[TrainState, StepBatch, jax.Array], Proposal]
"""(state, batch, penalty) -> Proposal."""


def penalty(settings: config.Method, ingredients: contract.Ingredients) -> Form:
  """Returns BRIDGE's penalty form: three gradients at the old parameters."""
  rebuilt = settings.rl_only_base == "one_step"

  def propose(state, batch, penalty):
    def rebuild(lower: Gradient) -> Tree:
      return penalty_form.one_step(
        ingredients.optimizers["base"],
        state.optimizer_states["base"],
        state.base,
        lower.base,
      )

    terms = penalty_form.terms(
      ingredients.problem,
      state.base,
      state.rl_only_base,
      state.adapter,
      batch.sft,
      batch.rl,
      gradient=ingredients.gradient,
      rl_only_batch=functools.partial(_rl_only_batch, settings),
      rebuild=rebuild if rebuilt else None,
    )
    gradients = penalty_form.combine(
      terms, penalty, settings.gain_weight
    )._asdict()
    if rebuilt:
      del gradients["rl_only_base"]
    upper, lower, rl_only = terms
    zeros = optax.tree.zeros_like(state.adapter)
    minus_gain = penalty_form.excess(lower.adapter, 1, rl_only.adapter)
    return Proposal(
      state,
      gradients,
      {
        "sft/loss": upper.loss,
        "rl/loss": lower.loss,
        **diagnostics.parts_metrics(
          penalty_form.mix(penalty, upper.adapter, zeros),
          penalty_form.mix(penalty, zeros, minus_gain),
        ),
        **_mix(agreement(upper.base, lower.base), penalty),
        **diagnostics.rollout_metrics(batch.rl, lower.aux),
        **diagnostics.rl_only_metrics(batch.rl, lower.aux, rl_only.aux),
      },
    )

  return propose


def unroll(settings: config.Method, ingredients: contract.Ingredients) -> Form:
  """Returns the form that differentiates through the optimiser's steps.

  Both bases are where their K steps took them; only the adapter is left to
  its optimiser. The cooperative gain is that of the moved bases.
  """
  upper, lower = map(ingredients.gradient, ingredients.problem)
  kept = settings.rl_only_base != "one_step"
  estimators = {
    name: unrolled.unrolled(
      ingredients.optimizers[name],
      steps=settings.inner_steps,
      mixed_product=mixed_product(settings, "unrolled"),
    )
    for name in ("base", "rl_only_base")
  }
  # A copy that is rebuilt is the base after one RL update of its optimiser.
  copy = "rl_only_base" if kept else "base"

  def propose(state, batch, penalty):
    found = cooperative.cooperative(
      estimators["base"],
      estimators[copy],
      upper,
      lower,
      state.base,
      getattr(state, copy),
      state.adapter,
      batch.sft,
      batch.rl,
      weight=penalty,
      optimizer_state=state.optimizer_states["base"],
      rl_only_state=state.optimizer_states[copy],
      rl_only_batch=_unrolled_rl_only_batch(settings),
    )
    state = _moved(state, "base", found.joint)
    if kept:
      state = _moved(state, "rl_only_base", found.rl_only)
    first = jax.tree.map(lambda x: x[0], found.joint.lower_aux)
    return Proposal(
      state,
      {"adapter": found.gradient},
      _metrics(batch.rl, found, first, penalty),
    )

  return propose


def by_implicit_function(
  settings: config.Method, ingredients: contract.Ingredients
) -> Form:
  """Returns the form that takes both bases to be where they are heading."""
  upper, lower = map(ingredients.gradient, ingredients.problem)
  if settings.solver == "neumann":
    solver = implicit.neumann(
      terms=settings.solver_iterations, step=settings.neumann_step
    )
  else:
    solver = implicit.conjugate_gradient(
      iterations=settings.solver_iterations,
      tolerance=settings.solver_tolerance,
    )
  estimator = implicit.implicit(
    solver,
    damping=settings.damping,
    mixed_product=mixed_product(settings, "implicit"),
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
      rl_only_batch=functools.partial(_rl_only_batch, settings),
    )
    gradients = {
      "base": found.joint.upper.base,
      "rl_only_base": found.rl_only.upper.base,
      "adapter": found.gradient,
    }
    solved = found.joint.diagnostics, found.rl_only.diagnostics
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


def one_step(
  settings: config.Method, ingredients: contract.Ingredients
) -> Form:
  """Returns the form that expands one step of both bases to first order.

  Nothing is evaluated after the step, so no cooperative gain is measured.
  """
  upper, lower = map(ingredients.gradient, ingredients.problem)
  optimizer = ingredients.optimizers["base"]

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
      mixed_product=mixed_product(settings, "one_step"),
    )
    at_upper, at_lower = found.upper, found.lower
    gradients = {
      "base": penalty_form.mix(penalty, at_upper.base, at_lower.base),
      "adapter": found.gradient,
    }
    return Proposal(
      state,
      gradients,
      {
        "sft/loss": at_upper.loss,
        "rl/loss": at_lower.loss,
        **diagnostics.parts_metrics(found.direct, found.implicit),
        **_mix(agreement(at_upper.base, at_lower.base), penalty),
        **diagnostics.rollout_metrics(batch.rl, at_lower.aux),
      },
    )

  return propose


FORMS: dict[str, Callable[[config.Method, contract.Ingredients], Form]] = {
  "penalty": penalty,
  "unrolled": unroll,
  "implicit": by_implicit_function,
  "one_step": one_step,
}
SECOND_ORDER = frozenset({"unrolled", "implicit", "one_step"})
"""Forms that need second derivatives of the two losses."""
DIFFERENTIATES_OPTIMIZER = frozenset({"unrolled", "one_step"})


def second_order(settings: config.Method) -> list[str]:
  """Returns the forms of a method that differentiate its losses twice."""
  if settings.name != "bridge":
    return []
  wanted = (settings.hypergradient, *settings.compare_with)
  return [name for name in wanted if name in SECOND_ORDER]


def mixed_product(settings: config.Method, form: str) -> MixedProduct:
  """Returns how a form takes its products with second derivatives."""
  if settings.mixed_product is not None:
    return settings.mixed_product
  return "finite_difference" if form == "one_step" else "exact"


def leaves_the_old_base(
  settings: config.Method, wanted: tuple[str, ...]
) -> bool:
  """Returns whether the RL loss is taken at other bases than the old one.

  Then the log-probs of the policy that sampled must come with the batch: a
  loss's own, stopped, would move along with the base.

  Args:
    settings: of the method.
    wanted: forms that are used.
  """
  return "unrolled" in wanted or any(
    mixed_product(settings, name) == "finite_difference"
    for name in SECOND_ORDER.intersection(wanted)
  )


def _rl_only_batch(
  settings: config.Method, batch: RLBatch, aux: dict[str, jax.Array]
) -> RLBatch:
  """The shared rollouts, as the RL-only branch's ratio needs them."""
  if settings.rl_only_ratio == "on_policy":
    return dataclasses.replace(batch, old_logprobs=None, sampler_logprobs=None)
  if batch.old_logprobs is None:
    return dataclasses.replace(batch, old_logprobs=aux["logprobs"])
  return batch


def _unrolled_rl_only_batch(settings: config.Method):
  # Old log-probs are given here (`Plan.old_logprobs`): no aux is needed.
  return lambda batch, aux: _rl_only_batch(settings, batch, {})


def _moved(state: TrainState, name: str, found: Hypergradient) -> TrainState:
  states = state.optimizer_states | {name: found.optimizer_state}
  return dataclasses.replace(
    state, optimizer_states=states, **{name: found.base}
  )


def _metrics(
  batch: RLBatch,
  found: cooperative.Cooperative,
  before: cooperative.JointAux,
  penalty: jax.Array,
) -> dict:
  """What the two forms with an F of two branches log."""
  return {
    "sft/loss": before.upper_loss,
    "rl/loss": before.lower_loss,
    **diagnostics.parts_metrics(found.direct, found.implicit),
    **_mix(before.agreement, penalty),
    **diagnostics.rollout_metrics(batch, before.lower),
    **diagnostics.rl_only_metrics(
      batch, found.joint.upper.aux.lower, found.rl_only.upper.aux
    ),
  }


def _mix(agreement: Agreement, penalty: jax.Array) -> dict:
  return diagnostics.gradient_metrics(
    agreement, sft_weight=1 - penalty, rl_weight=penalty
  )
