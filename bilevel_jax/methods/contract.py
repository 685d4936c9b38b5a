"""What a method is: static facts and pure functions; and what makes one."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import jax.sharding
import jax.typing
import numpy as np
import optax

from bilevel_jax.bilevel import evidence, problem
from bilevel_jax.rollout import answers, rounds
from bilevel_jax.types import (
  Demonstration,
  Metrics,
  RLBatch,
  StepBatch,
  Taught,
  TokenBatch,
  TrainState,
  Tree,
)


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


class Needs(NamedTuple):
  """What of a run does not change from step to step."""

  rollouts: bool = True
  """Whether any step samples."""
  demonstrations: Literal["sampled", "required", "own", "prefix"] | None = None
  """Sampled from their stream, none at all included; sampled, and there must be
  some; each question's own, and there must be some; or those, and samples begin
  with a part of them. None: never read."""
  adapter: bool = False
  """Whether `init` wants an adapter, or None in its place."""
  reference: Literal["start", "own"] | None = "start"
  """Policy of the KL term, where there is one: the one that the run began with,
  or the tree `extra["reference"]` of the state. None: there is no KL term."""
  expert: Literal["rollouts", "demonstrations"] | None = None
  """What the log-probs under the model `method.expert` are wanted of."""
  teacher: str | None = None
  """What a teacher is asked whose opinion of the completions updates read, with
  {question} and {solution}; it is asked as a question is.
  None: there is none."""
  every_rollout: bool = False
  """Whether a rollout without advantage has a gradient in it, or is read."""
  gradients: Gradients | None = Gradients()
  """For the operations that are counted; None: they are not known."""
  trees: int = 1
  """Gradients of the base's size in memory at once, for the memory plan."""

  @property
  def own_demonstrations(self) -> bool:
    """Whether each question's own demonstration is read."""
    return self.demonstrations in ("own", "prefix")


class Groups(NamedTuple):
  """What is known of a step's P questions with G samples each."""

  rewards: np.ndarray  # [P, G]
  correct: np.ndarray  # [P, G] bool
  scored: np.ndarray  # [P, G] bool
  truncated: np.ndarray  # [P, G] bool: cut for its length
  prefix_lengths: np.ndarray  # [P, G] int, tokens that a sample began with
  # [P, G] int, tokens of a sample that it made itself; 0: it has no weight
  lengths: np.ndarray
  demonstrations: Sequence[Demonstration | None]  # P, each question's own

  @property
  def demonstrated(self) -> np.ndarray:
    """[P] bool: the question has a demonstration of its own."""
    return np.array([d is not None for d in self.demonstrations])

  @property
  def outcomes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards, scored and lengths: what advantages follow from."""
    return self.rewards, self.scored, self.lengths

  @property
  def accuracy(self) -> np.ndarray:
    """[P] float, the right share of a question's scored samples.

    nan where none could be scored: no comparison with it holds, so what could
    not be judged is neither solved nor failed.
    """
    scored = self.scored.sum(axis=1)
    right = (self.correct & self.scored).sum(axis=1)
    unknown = np.full(len(scored), np.nan)
    return np.divide(right, scored, out=unknown, where=scored > 0)


Advantages: TypeAlias = Callable[
  [np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]
]
"""(rewards, scored, lengths) -> advantages and baselines, all [P, G]."""


class Host(Protocol):
  """What a method's host-side program may ask of the run, in one step."""

  plan: Plan
  """Of this step."""
  step: int
  """Steps done before this one."""
  steps: int
  """Steps of the whole run."""
  updates: int
  """Updates of a step."""
  parts: int
  """Of them, those of one pass over the step's rollouts."""
  memory: dict[str, Any]
  """The method's own, kept from step to step and in checkpoints: JSON."""

  def sample(self, guide: rounds.Guide | None = None) -> answers.Answers:
    """Returns the policy's scored answers to the next questions.

    Args:
      guide: how much of its demonstration each begins with; None: nothing.
    """
    ...

  def groups(self, answers: answers.Answers) -> Groups:
    """Returns what a method may decide by, of those answers."""
    ...

  def rl(
    self,
    answers: answers.Answers,
    *,
    counted: np.ndarray | None = None,
    advantages: np.ndarray | None = None,
    count_from: np.ndarray | None = None,
    given_apart: bool = False,
  ) -> list[RLBatch]:
    """Returns the answers as the batches of the step's updates, on the devices.

    Log-probs of older policies are those of this moment: to be called before
    the first update.

    Args:
      answers: N = P * G of them.
      counted: [P, G] bool, rows that have weight; None: all.
      advantages: [P, G]; None: by `rl.advantage`.
      count_from: [P, G] int, tokens at each completion's start that have no
        weight; None: those that it was given.
      given_apart: whether `rl.weighting` weighs given tokens among themselves.
    """
    ...

  def teacher(self, answers: answers.Answers) -> list[Taught]:
    """Returns what a teacher reads, for each batch of `rl`, on the devices.

    Questions without a demonstration of their own, and those with which the
    model would have too few positions, have no teacher.

    Args:
      answers: N = P * G of them.
    """
    ...

  def demonstrations(self) -> list[Demonstration]:
    """Returns an update's share of the step's demonstrations: the next ones."""
    ...

  def demonstrations_at(self, ids: Iterable[int]) -> list[Demonstration]:
    """Returns the demonstrations with those ids."""
    ...

  def sft(
    self,
    demonstrations: Sequence[Demonstration],
    *,
    rows: int | None = None,
    coefficients: np.ndarray | None = None,
    group_advantages: np.ndarray | None = None,
  ) -> TokenBatch:
    """Returns demonstrations as an update's batch, on the devices.

    Args:
      rows: to pad to, so that few programs serve all steps; None: an update's
        share of `data.demonstrations_per_step`.
      coefficients: [n], what their tokens' weights are multiplied by.
      group_advantages: [n], as TokenBatch has them.
    """
    ...

  def text(self, tokens: Any) -> str:
    """Returns the text of token ids."""
    ...

  def random(self) -> np.random.Generator:
    """Returns the source of the step's own random choices, from its start."""
    ...

  def log(self, numbers: Mapping[str, float]) -> None:
    """Adds to the step's line of metrics."""
    ...


def on_policy(host: Host) -> Iterator[StepBatch]:
  """Yields rollouts, demonstrations or both, for each update of a step."""
  rl: Sequence[RLBatch | None] = [None] * host.updates
  if host.plan.rollouts:
    rl = host.rl(host.sample())
  for rollouts in rl:
    demonstrations = None
    if host.plan.demonstrations:
      demonstrations = host.sft(host.demonstrations())
    yield StepBatch(rl=rollouts, sft=demonstrations)


Batches: TypeAlias = Callable[[Host], Iterator[StepBatch]]
"""What each update of a step sees; runs on the host. An update is done before
the next batch is asked for."""


class Updated(NamedTuple):
  """What an update returns."""

  state: TrainState
  metrics: Metrics
  must_be_finite: Tree
  """Losses and gradient norms: where one is not finite the state stays as it
  was, and the update counts as skipped."""


class Method(NamedTuple):
  """A way of combining SFT and RL. Hyper-parameters live in the closures."""

  needs: Needs
  init: Callable[[Tree, Tree | None], TrainState]
  """(base, adapter) -> state."""
  plan: Callable[[int, Mapping[str, float]], Plan]
  """(steps done, scalars of the state's `extra`) -> what to sample and draw. To
  read a scalar waits for the last update."""
  update: Callable[[TrainState, StepBatch], Updated]
  """Jittable, and pure."""
  batches: Batches = on_policy
  """host -> what each update of the step sees."""
  placement: Sequence[tuple[str, jax.sharding.PartitionSpec]] = ()
  """(pattern, mesh axes) of arrays of its own, by their paths in `extra`. What
  none names lies as the parameter of its name; without one, on every device."""
  ranking: Callable[[TrainState], evidence.Ranking] | None = None
  """state -> what it learned of each demonstration; None: nothing."""


class DemonstrationGroups(NamedTuple):
  """Which of the run's demonstrations belong together."""

  names: Sequence[str] = ()
  members: np.ndarray = np.zeros(0, np.int32)
  """[demonstrations] int32, an index into names; 0 without names."""


class Teaching(NamedTuple):
  """What weights of the policy think of tokens; nothing has a gradient."""

  logprobs: Callable[[Tree, Tree | None, TokenBatch], jax.Array]
  """(base, adapter, batch) -> [B, T], at the rollouts' temperature."""
  states: Callable[[Tree, TokenBatch], jax.Array]
  """(base, batch) -> [B, T, D], as `terms.token_states`."""
  divergence: Callable[..., Callable[..., jax.Array]]
  """(base, kind=..., top=...) -> the divergence of states from that base's, as
  `terms.rl_objective` takes it."""


class Setup(NamedTuple):
  """What every method is built from, whatever it does with it."""

  sft_loss: Callable[..., problem.Objective]
  """(token_weight=..., context=..., with_entropy=...) -> the SFT loss of a
  TokenBatch, as `terms.sft_objective`."""
  rl_loss: Callable[..., problem.Objective]
  """(prefix_loss=..., advantages=..., surrogate=..., with_entropy=...) -> the
  RL loss of an RLBatch, as `terms.rl_objective`."""
  teacher: Teaching
  """What a teacher thinks of tokens."""
  gradient: Callable[[problem.Objective], problem.GradientFunction]
  """Makes an objective's gradient, accumulated over micro-batches or not."""
  optimizers: Mapping[str, optax.GradientTransformation]
  """Of the trees base and adapter of TrainState."""
  base_optimizer: Callable[..., optax.GradientTransformation]
  """(peak learning rate, updates, scale=1.0, plain=False) -> an optimiser like
  the base's in all else; None: the base's own peak; scale: of either; plain:
  SGD at a constant rate, with the base's clip."""
  advantages: Advantages
  """By `rl.advantage`."""
  as_one_batch: Callable[[np.ndarray, np.ndarray], tuple[float, float]]
  """(tokens of samples [N], of demonstrations [D]) -> what the RL and the SFT
  loss are multiplied by, as `weighting.as_one_batch`, with the settings'."""
  total_updates: int
  """Updates of the whole run, for schedules."""
  updates_per_step: int = 1
  adapter_targets: Sequence[str] = ()
  """Matrices of a layer that the adapter is added to."""
  reference_dtype: jax.typing.DTypeLike | None = None
  """Of a copy of the KL's reference policy; None: there is no KL term."""
  demonstration_groups: DemonstrationGroups = DemonstrationGroups()
  seed: int = 0
  """Of a method's own random choices."""

  @property
  def demonstrations(self) -> int:
    """How many there are: the ids of TokenBatch are below it."""
    return len(self.demonstration_groups.members)

  @property
  def steps(self) -> int:
    """Steps of the whole run."""
    return self.total_updates // self.updates_per_step


Build: TypeAlias = Callable[[Any, Setup], Method]
"""(the method's Options, setup) -> the method."""


def new_state(
  optimizers: Mapping[str, optax.GradientTransformation],
  extra: Tree = None,
  **trees: Tree,
) -> TrainState:
  """Returns a TrainState with these trees and an optimiser state for each.

  Args:
    optimizers: by the name of the tree that each one moves.
    extra: the method's own state; None: there is none.
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
    extra={} if extra is None else extra,
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
    state, updates=state.updates + 1, optimizer_states=optimizer_states, **trees
  )
  return state, metrics
