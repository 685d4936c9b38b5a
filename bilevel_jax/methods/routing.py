"""Steps that learn from some of their rollouts, and from the demonstrations of
their own questions.

A route is decided in numpy once the rewards are known; shapes stay as they
are, and what is left out has weight 0.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

from bilevel_jax.methods import contract, updates
from bilevel_jax.objectives import prefix_losses
from bilevel_jax.rollout import rounds
from bilevel_jax.types import StepBatch, TokenBatch


class Route(NamedTuple):
  """What becomes of a step's P questions and their G samples each."""

  advantages: np.ndarray  # [P, G]
  rollouts: np.ndarray | None = None
  """[P, G] bool: the sample counts; None: all do."""
  demonstrations: np.ndarray | None = None
  """[P] bool: the question's demonstration counts; None: none does."""
  coefficients: np.ndarray | None = None
  """[P] of those, beside the weights of their tokens; None: 1."""
  group_advantages: np.ndarray | None = None
  """[P] of those, as TokenBatch has them; None: they have none."""
  prefixes: np.ndarray | None = None
  """[P, G] bool: what the sample began with counts; None: it never does."""


Router: TypeAlias = Callable[[contract.Groups, contract.Host], Route]


def routed(
  router: Router,
  guide: rounds.Guide | None = None,
  *,
  given_apart: bool = False,
) -> contract.Batches:
  """Returns the host-side program of a method that routes its rollouts.

  Demonstrations, where the plan has them, are those of the step's own
  questions. A step without rollouts is `contract.on_policy`.

  Args:
    guide: how much of its demonstration each sample begins with.
    given_apart: whether `rl.weighting` weighs given tokens among themselves.
  """

  def batches(host: contract.Host) -> Iterator[StepBatch]:
    if not host.plan.rollouts:
      yield from contract.on_policy(host)
      return
    answers = host.sample(guide)
    groups = host.groups(answers)
    route = router(groups, host)
    count_from = None
    if route.prefixes is not None:
      count_from = np.where(route.prefixes, 0, groups.prefix_lengths)
    learned = np.zeros(len(groups.rewards), bool)
    if route.demonstrations is not None:
      learned = route.demonstrations & groups.demonstrated
    host.log(
      {
        "mix/demonstrated_questions": float(np.mean(groups.demonstrated)),
        "mix/sft_questions": float(np.mean(learned)),
      }
    )
    rl = host.rl(
      answers,
      counted=route.rollouts,
      advantages=route.advantages,
      count_from=count_from,
      given_apart=given_apart,
    )
    parts = np.array_split(np.arange(len(learned)), host.parts)
    for number, rollouts in enumerate(rl):
      sft = None
      if host.plan.demonstrations:
        questions = parts[number % len(parts)]
        sft = _own(host, groups, route, questions[learned[questions]])
      yield StepBatch(rl=rollouts, sft=sft)

  return batches


def _own(
  host: contract.Host,
  groups: contract.Groups,
  route: Route,
  questions: np.ndarray,
) -> TokenBatch:
  """Those questions' demonstrations, in as many rows as an update may have."""
  own = [groups.demonstrations[q] for q in questions]
  of = lambda values: None if values is None else values[questions]
  return host.sft(
    [demonstration for demonstration in own if demonstration is not None],
    rows=-(-len(groups.rewards) // host.parts),
    coefficients=of(route.coefficients),
    group_advantages=of(route.group_advantages),
  )


def on_own_demonstrations(
  method: contract.Method, router: Router
) -> contract.Method:
  """Returns a method of both losses whose SFT is on the questions' own."""
  return method._replace(
    needs=method.needs._replace(demonstrations="own"), batches=routed(router)
  )


def guided(
  setup: contract.Setup,
  guide: rounds.Guide,
  loss: prefix_losses.PrefixLoss,
  prefixes: Callable[[np.ndarray], np.ndarray] = lambda lengths: lengths > 0,
  *,
  given_apart: bool = False,
) -> contract.Method:
  """Returns RL on completions that begin with a part of a demonstration.

  Args:
    guide: how much of its demonstration each sample begins with.
    loss: of the tokens that it begins with.
    prefixes: [P, G] tokens that samples began with -> [P, G] bool, for which of
      them that loss counts.
    given_apart: whether `rl.weighting` weighs given tokens among themselves.
  """

  def route(groups: contract.Groups, host: contract.Host) -> Route:
    advantages, _ = setup.advantages(*groups.outcomes)
    return Route(advantages, prefixes=prefixes(groups.prefix_lengths))

  return updates.rl_method(
    setup,
    objective=setup.rl_loss(prefix_loss=loss),
    batches=routed(route, guide, given_apart=given_apart),
    needs=contract.Needs(demonstrations="prefix", every_rollout=True),
  )
