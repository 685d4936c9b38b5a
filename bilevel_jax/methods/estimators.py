"""Which hypergradient, through what: settings that all upper levels share."""

import dataclasses
from typing import Literal

from bilevel_jax.bilevel import implicit
from bilevel_jax.bilevel.mixed_mode import MixedProduct
from bilevel_jax.bilevel.problem import Hypergradient
from bilevel_jax.fields import setting
from bilevel_jax.types import TrainState

SECOND_ORDER = frozenset({"unrolled", "implicit", "one_step"})
"""Forms that need second derivatives of the two losses."""
DIFFERENTIATES_OPTIMIZER = frozenset({"unrolled", "one_step"})


@dataclasses.dataclass(frozen=True)
class Options:
  upper: Literal["adapter", "demonstrations", "token_weight", "auto"] = setting(
    "adapter",
    "the upper level's variables: LoRA factors, as in the paper, a weight for "
    "each demonstration, or the exponents of a weight that tokens have by "
    "their probability and entropy; auto: the adapter where freeze_adapted "
    "keeps the base from undoing it, else demonstrations",
  )
  hypergradient: (
    Literal["penalty", "unrolled", "implicit", "one_step"] | None
  ) = setting(
    None,
    "how the upper level's gradient is estimated; default: penalty for the "
    "adapter, one_step for weights",
  )
  compare_with: tuple[str, ...] = setting(
    (), "other hypergradients whose cosine with ours is logged, at their cost"
  )
  gain_weight: float = setting(
    1.0,
    "weight of the cooperative gain in the adapter's gradient, with "
    "hypergradient=penalty",
    at_least=0,
  )
  surrogate: Literal["dice", "fixed_sample"] = setting(
    "dice", "RL loss of the second-order hypergradients"
  )
  mixed_product: Literal["exact", "finite_difference"] | None = setting(
    None,
    "second derivatives: a jvp, or a difference of two gradients; default: "
    "exact, but for one_step, which is to be cheap, a difference",
  )
  inner_steps: int = setting(
    1, "optimiser steps that hypergradient=unrolled goes through", at_least=1
  )
  solver: Literal["conjugate_gradient", "neumann"] = setting(
    "conjugate_gradient", "linear solver of hypergradient=implicit"
  )
  solver_iterations: int = setting(
    8, "most products of the solver with the Hessian", at_least=1
  )
  solver_tolerance: float = setting(
    1e-3, "relative residual that ends solver=conjugate_gradient", at_least=0
  )
  neumann_step: float = setting(
    1e-2, "learning rate of solver=neumann", above=0
  )
  damping: float = setting(
    1.0, "multiple of the identity added to implicit's Hessian", at_least=0
  )
  rl_only_base: Literal["persistent", "one_step", "resync"] = setting(
    "persistent",
    "the copy of the base that RL alone trains, against which the gain is "
    "measured: never reset (persistent), made anew from the base by one RL "
    "update in each step (one_step), or set to the base now and then (resync)",
  )
  freeze_adapted: bool = setting(
    False,
    "whether the matrices of adapter.targets stay as they are in the base and "
    "in the RL-only copy, so that neither can undo the adapter; else both move "
    "them",
  )
  rl_only_ratio: Literal["behaviour", "on_policy"] = setting(
    "behaviour",
    "policy that the RL-only copy's ratio is taken against: the one that "
    "sampled, or the copy's own",
  )

  @property
  def variables(self) -> str:
    """The upper level's variables, whatever `upper` leaves open."""
    if self.upper != "auto":
      return self.upper
    return "adapter" if self.freeze_adapted else "demonstrations"

  @property
  def form(self) -> str:
    """The hypergradient that moves the upper level."""
    default = "penalty" if self.variables == "adapter" else "one_step"
    return self.hypergradient or default

  @property
  def wanted(self) -> tuple[str, ...]:
    """The forms that are computed, the one that moves the upper level first."""
    return (self.form, *self.compare_with)

  @property
  def second_order(self) -> list[str]:
    """The wanted forms that differentiate the losses twice."""
    return [name for name in self.wanted if name in SECOND_ORDER]

  @property
  def rl_twice(self) -> bool:
    """Whether the RL loss is differentiated twice."""
    once = self.variables != "adapter" and self.form == "one_step"
    return bool(self.second_order) and not once


def linear_solver(options: Options) -> implicit.Solver:
  """Returns the solver of the implicit form."""
  if options.solver == "neumann":
    return implicit.neumann(
      terms=options.solver_iterations, step=options.neumann_step
    )
  return implicit.conjugate_gradient(
    iterations=options.solver_iterations, tolerance=options.solver_tolerance
  )


def mixed_product(options: Options, form: str) -> MixedProduct:
  """Returns how a form takes its products with second derivatives."""
  if options.mixed_product is not None:
    return options.mixed_product
  return "finite_difference" if form == "one_step" else "exact"


def leaves_the_old_base(options: Options) -> bool:
  """Returns whether the RL loss is taken at other bases than the old one.

  Then the log-probs of the policy that sampled must come with the batch: a
  loss's own, stopped, would move along with the base.
  """
  return "unrolled" in options.wanted or any(
    mixed_product(options, name) == "finite_difference"
    for name in options.second_order
  )


def moved(state: TrainState, name: str, found: Hypergradient) -> TrainState:
  """Returns the state with a tree where an estimator's steps took it."""
  states = state.optimizer_states | {name: found.optimizer_state}
  return dataclasses.replace(
    state, optimizer_states=states, **{name: found.lower}
  )
