"""Which rollouts and which demonstrations of its questions a step learns from.

A route is decided in numpy once the rewards are known; shapes stay as they
are, and what is left out has weight 0.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from bilevel_jax.objectives.weighting import Weighting
from bilevel_jax.rollout import answers, assemble
from bilevel_jax.types import Question, Scores, TokenBatch

Pair: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Prompt and solution, int32 token ids."""


class Solutions(Protocol):
  """Finds questions' own demonstrations."""

  def of(self, questions: Sequence[Question]) -> Sequence[Pair | None]:
    """Returns each question's own demonstration, None where it has none."""
    ...


class Groups(NamedTuple):
  """What is known of a step's P questions with G samples each."""

  rewards: np.ndarray  # [P, G]
  correct: np.ndarray  # [P, G] bool
  scored: np.ndarray  # [P, G] bool
  demonstrated: np.ndarray  # [P] bool: there is a worked solution
  given: np.ndarray  # [P, G] int, tokens that a sample began with
  truncated: np.ndarray  # [P, G] bool: it was cut for its length
  seed: Sequence[int] = (0,)  # of a router's random choices in this step
  step: int = 0  # steps done before this one


class Route(NamedTuple):
  """What becomes of them."""

  rollouts: np.ndarray  # [P, G] bool: it counts
  advantages: np.ndarray  # [P, G] of those
  demonstrations: np.ndarray  # [P] bool: it counts
  coefficients: np.ndarray  # [P] of those, beside the weights of their tokens
  prefixes: np.ndarray | None = None
  """[P, G] bool: what the sample began with counts; None: it never does."""
  held_back: np.ndarray | None = None
  """[P] bool: its demonstration waits in `Method.buffer`; None: none does."""
  group_advantages: np.ndarray | None = None
  """[P] of demonstrations, as TokenBatch has them; None: they have none."""


Router: TypeAlias = Callable[[Groups], Route]


def of_rollouts(
  advantages: np.ndarray,
  *,
  prefixes: np.ndarray | None = None,
  held_back: np.ndarray | None = None,
) -> Route:
  """Returns the route on which all samples count and no demonstration does.

  Args:
    advantages: [P, G] of the samples.
    prefixes: as in `Route`.
    held_back: as in `Route`.
  """
  return Route(
    rollouts=np.ones(advantages.shape, bool),
    advantages=advantages,
    demonstrations=np.zeros(len(advantages), bool),
    coefficients=np.zeros(len(advantages)),
    prefixes=prefixes,
    held_back=held_back,
  )


class Routed(NamedTuple):
  """A step's rollouts and demonstrations, routed."""

  scores: Scores  # not scored: also what does not count
  advantages: np.ndarray  # [N]
  skipped: np.ndarray | None  # [N], see `assemble.rl_batch`
  route: Route
  questions: Sequence[Question]  # P
  pairs: Sequence[Pair | None]  # P
  parts: int  # updates that the questions are split over

  def demonstrations(
    self, number: int, weighting: Weighting, *, columns: int | None = None
  ) -> TokenBatch:
    """Returns the demonstrations of an update's part of the questions as rows.

    Args:
      number: of the step's updates, from 0; each pass has all `parts`.
      weighting: [B, T] mask of solutions -> weights.
      columns: columns to pad to; default: the bucket of the longest row.
    """
    questions = np.array_split(np.arange(len(self.pairs)), self.parts)
    questions = questions[number % self.parts]
    counted = [q for q in questions if self.route.demonstrations[q]]
    rows = -(-len(self.pairs) // self.parts)

    def column(values: np.ndarray) -> np.ndarray:
      out = np.zeros((rows, 1), np.float32)
      out[: len(counted), 0] = values[counted]
      return out

    batch = assemble.token_batch(
      [pair for q in counted if (pair := self.pairs[q]) is not None],
      lambda mask: weighting(mask) * column(self.route.coefficients),
      rows=rows,
      columns=columns,
    )
    if self.route.group_advantages is None:
      return batch
    return dataclasses.replace(
      batch, group_advantages=column(self.route.group_advantages)
    )

  def held_back(self) -> list[str]:
    """Returns the ids of the questions whose demonstrations are to wait."""
    if self.route.held_back is None:
      return []
    waits = zip(self.questions, self.route.held_back, self.pairs, strict=True)
    return [question.id for question, held, pair in waits if held and pair]

  def metrics(self) -> dict[str, float]:
    """Returns the shares of questions that have and that get an SFT loss."""
    return {
      "mix/demonstrated_questions": float(
        np.mean([pair is not None for pair in self.pairs])
      ),
      "mix/sft_questions": float(np.mean(self.route.demonstrations)),
    }


def follow(
  router: Router,
  answered: answers.Answers,
  solutions: Solutions | None,
  *,
  parts: int = 1,
  seed: Sequence[int] = (0,),
  step: int = 0,
) -> Routed:
  """Returns a step's rollouts and demonstrations as the router says.

  Args:
    router: decides.
    answered: N = P * G completions, prompt-major.
    solutions: where a question's demonstration is found, if it has one; None:
      none has.
    parts: updates that the questions are split over.
    seed: of the router's random choices.
    step: steps done before this one.
  """
  scores, given = answered.scores, answered.rollout.given
  groups = (-1, answered.rollout.requests.samples_per_prompt)
  questions = answered.questions[:: groups[1]]
  pairs = [None] * len(questions)
  if solutions is not None:
    pairs = solutions.of(questions)
  demonstrated = np.array([pair is not None for pair in pairs])
  route = router(
    Groups(
      rewards=scores.rewards.reshape(groups),
      correct=scores.correct.reshape(groups),
      scored=scores.scored.reshape(groups),
      demonstrated=demonstrated,
      given=given.reshape(groups),
      truncated=answered.rollout.truncated.reshape(groups),
      seed=seed,
      step=step,
    )
  )
  skipped = None
  if route.prefixes is not None:
    skipped = np.where(route.prefixes.ravel(), 0, given)
  route = route._replace(demonstrations=route.demonstrations & demonstrated)
  kept = dataclasses.replace(
    scores, scored=scores.scored & route.rollouts.ravel()
  )
  return Routed(
    scores=kept,
    advantages=route.advantages.ravel(),
    skipped=skipped,
    route=route,
    questions=questions,
    pairs=pairs,
    parts=parts,
  )
