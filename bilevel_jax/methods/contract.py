"""What a method is: a tuple of pure functions, and what it is made from."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax.typing
import numpy as np
import optax

from bilevel_jax.bilevel import problem as bilevel_problem
from bilevel_jax.rollout import rounds, routing
from bilevel_jax.types import Metrics, StepBatch, TrainState, Tree


class Plan(NamedTuple):
  """What a step needs; decided on the host, before anything is sampled."""

  rollouts: bool
  demonstrations: bool
  old_logprobs: bool = False
  """Whether even a step's only update needs the log-probs of before it."""
  length_share: float = 1.0
  """Of the settings' longest completion that rollouts may have."""
  temperature: float | None = None
  """Of the rollouts; None: the settings'."""


class Gradients(NamedTuple):
  """How often an update takes the gradient of each loss."""

  sft: int = 1
  rl: int = 1


class Method(NamedTuple):
  """A way of combining SFT and RL. Hyper-parameters live in the closures."""

  trains_adapter: bool
  """Whether `init` wants an adapter, or None in its place."""
  init: Callable[[Tree, Tree | None], TrainState]
  """(base, adapter) -> state."""
  plan: Callable[[int], Plan]
  """step -> what to sample and draw. Runs on the host."""
  update: Callable[[TrainState, StepBatch], tuple[TrainState, Metrics]]
  """(state, batch) -> (state, metrics). Jittable, and pure."""
  narrow: Callable[[TrainState, Plan], Plan] | None = None
  """(state, plan) -> what of the plan the step needs, where only the state
  knows. Runs on the host, and waits for the state."""
  route: routing.Router | None = None
  """What becomes of a step's rollouts and demonstrations. Runs on the host; the
  demonstrations, where planned, are then those of the step's own questions."""
  guide: rounds.Guide | None = None
  """How much of its demonstration each sample begins with. Runs on the host,
  before each round of a step's sampling; its tokens count as `route` says."""
  buffer: int | None = None
  """Demonstrations that `route` holds back before an update of their own, with
  no rollouts, ends the step; None: there is no such update."""
  lead: str | None = None
  """Text that ends a completion's lead, SFT's alone: the RL loss leaves out
  what comes up to it, the SFT loss what comes after it; None: there is no lead.
  Of methods without a route."""
  reference: Callable[[TrainState], Tree | None] | None = None
  """state -> base of the reference policy, or None for no reference; None: the
  one the run began with, where the loss has a KL term."""
  every_rollout: bool = False
  """Whether a rollout without advantage has a gradient in it, or is read."""
  expert: Literal["rollouts", "demonstrations"] | None = None
  """What the log-probs under the model `method.expert` are wanted of."""
  finish: Callable[[TrainState], TrainState] | None = None
  """What becomes of the state when the last step is done. Jittable, and pure.
  """
  gradients: Gradients | None = Gradients()
  """For the MFU that is logged; None: there is no such number."""


class Ingredients(NamedTuple):
  """What every method is built from, whatever it does with it."""

  problem: bilevel_problem.Problem
  """upper: the SFT loss of a TokenBatch; lower: the RL loss of an RLBatch."""
  gradient: Callable[
    [bilevel_problem.Objective], bilevel_problem.GradientFunction
  ]
  """Makes an objective's gradient, accumulated over micro-batches or not."""
  optimizers: Mapping[str, optax.GradientTransformation]
  """For each tree of TrainState that can move: base, adapter, rl_only_base."""
  total_updates: int
  """Updates of the whole run, for schedules."""
  supervised: Callable[..., bilevel_problem.Objective]
  """(token_weight=..., context=..., with_entropy=...) -> the SFT loss with
  weights of its own on demonstration tokens, as `terms.sft_objective`."""
  reinforced: Callable[..., bilevel_problem.Objective]
  """(prefix_loss=..., advantages=...) -> the RL loss with a loss of its own on
  tokens that were given, or advantages of its own, as `terms.rl_objective`."""
  base_optimizer: Callable[..., optax.GradientTransformation]
  """(peak learning rate, updates, scale=1.0) -> an optimiser like the base's in
  all else; None: the base's own peak; scale: of either."""
  advantages: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
  """(rewards [P, G], scored [P, G]) -> advantages and baselines, [P, G]."""
  updates_per_step: int = 1
  reference_dtype: jax.typing.DTypeLike | None = None
  """Of a copy of the KL's reference policy; None: there is no KL term."""
  seed: int = 0
  """Of a method's own random choices."""


def new_state(
  optimizers: Mapping[str, optax.GradientTransformation], **trees: Tree
) -> TrainState:
  """Returns a TrainState with these trees and an optimiser state for each.

  Args:
    optimizers: by the name of the tree that each one moves.
    **trees: base, and adapter and rl_only_base where the method has them.
  """
  absent = {"adapter": None, "rl_only_base": None}
  zero = optax.tree.zeros_like(0)
  return TrainState(
    updates=zero,
    skipped_in_a_row=zero,
    optimizer_states={
      name: optimizers[name].init(tree) for name, tree in trees.items()
    },
    extra={},
    **(absent | trees),
  )


def advance(
  state: TrainState,
  optimizers: Mapping[str, optax.GradientTransformation],
  gradients: Mapping[str, Tree],
) -> tuple[TrainState, Metrics]:
  """Returns the state after one optimiser update of each tree, and the norms.

  All gradients were taken at the old parameters (Jacobi, not Gauss-Seidel):
  no update here sees another's result.

  Args:
    state: the state to move.
    optimizers: by tree name.
    gradients: by tree name, to be minimised.
  """
  trees, optimizer_states = {}, dict(state.optimizer_states)
  metrics = {}
  for name, gradient in gradients.items():
    updates, optimizer_states[name] = optimizers[name].update(
      gradient, state.optimizer_states[name], getattr(state, name)
    )
    trees[name] = optax.apply_updates(getattr(state, name), updates)
    metrics[f"optimizer/{name}_gradient_norm"] = optax.tree.norm(gradient)
  state = dataclasses.replace(
    state,
    updates=state.updates + 1,
    optimizer_states=optimizer_states,
    **trees,
  )
  return state, metrics
