"""Seeded streams whose whole state is one integer: examples sampled so far.

Position p of a stream over n examples is example `p % n` of epoch `p // n`,
in an order that the seed and the epoch determine. A stream with a share of some
examples is two such streams whose turns the position determines. Nothing else
is remembered, so a run that is resumed at a position sees exactly what it would
have seen.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import numpy as np

from bilevel_jax import errors, types
from bilevel_jax.data import order

Overlong = Literal["drop", "truncate"]


class Encoder(Protocol):
  """What a stream needs of a tokenizer."""

  def prompt_tokens(self, question: types.Question) -> np.ndarray:
    """Returns the int32 token ids of a question's prompt."""
    ...

  def demonstrations(
    self, question: types.Question
  ) -> list[types.Demonstration]:
    """Returns what a question with its solution is to be learned from."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
  """What became of the examples that a stream was given."""

  given: int
  without_solution: int = 0
  not_in_share: int = 0
  dropped: int = 0  # over-long
  truncated: int = 0  # over-long
  kept: int  # the truncated ones included

  def __str__(self) -> str:
    """Returns what became of them, in words."""
    left_out = {
      "without a solution": self.without_solution,
      "outside the share": self.not_in_share,
      "too long, dropped": self.dropped,
      "too long, truncated": self.truncated,
    }
    words = [f"{number} {why}" for why, number in left_out.items() if number]
    return ", ".join([f"{self.kept} of {self.given}", *words])


class Prompts:
  """A stream of questions with their encoded prompts.

  Attributes:
    questions: those that were kept, in the order in which they were given.
    ranks: [questions] float64, by which each epoch is ordered; None: shuffled.
  """

  def __init__(
    self,
    questions: Sequence[types.Question],
    encoder: Encoder,
    *,
    max_tokens: int,
    overlong: Overlong = "drop",
    seed: int = 0,
  ):
    """Encodes every prompt.

    Args:
      overlong: `drop` leaves longer prompts out; `truncate` keeps their end,
        where a chat template has the header of the answer.

    Raises:
      ConfigError: no question, or every prompt is too long.
    """
    if not questions:
      raise errors.ConfigError("a stream needs at least one question, got none")
    encoded = [encoder.prompt_tokens(question) for question in questions]
    fits = [len(tokens) <= max_tokens for tokens in encoded]
    keep = [fit or overlong == "truncate" for fit in fits]
    if not any(keep):
      raise errors.ConfigError(
        f"data.max_prompt_tokens is {max_tokens}, but the shortest of "
        f"{len(encoded)} prompts has {min(map(len, encoded))} tokens"
      )
    self._seed = seed
    self.questions = list(itertools.compress(questions, keep))
    self._tokens = [
      np.asarray(tokens[-max_tokens:], np.int32)
      for tokens in itertools.compress(encoded, keep)
    ]
    self._parts: order.Parts = [(np.arange(len(self)), 1.0)]
    self.ranks: np.ndarray | None = None
    self.counts = Counts(
      given=len(encoded),
      dropped=keep.count(False),
      truncated=fits.count(False) - keep.count(False),
      kept=len(self),
    )

  def __len__(self) -> int:
    return len(self.questions)

  def set_shares(self, members: Sequence[int], shares: Sequence[float]) -> None:
    """Makes shares of the stream's positions, evenly spread, of some examples.

    Args:
      members: the part, from 0, that each of `questions` is of.
      shares: of the parts, as `order.parts` has them.
    """
    self._parts = order.parts(members, shares)

  def set_ranks(self, ranks: Sequence[float] | np.ndarray) -> None:
    """Has each epoch begin with the questions of the smallest ranks.

    Args:
      ranks: [questions] numbers.
    """
    self.ranks = np.asarray(ranks, np.float64)

  def take(
    self, position: int, count: int
  ) -> tuple[list[types.Question], list[np.ndarray], np.ndarray]:
    """Returns `count` examples from `position` on.

    Returns:
      The questions; their prompts, arrays of int32; and [count] uint32 ids
      that name their random streams: the positions, so that a question that
      is sampled twice does not sample the same tokens twice.
    """
    indices = order.of_parts(
      self._parts, position, count, self._seed, self.ranks
    )
    ids = np.arange(position, position + count).astype(np.uint32)
    return *self._at(indices), ids

  def every(self) -> tuple[list[types.Question], list[np.ndarray]]:
    """Returns each example once, whatever has a share of the stream.

    Returns:
      The questions, and their prompts, arrays of int32.
    """
    return self._at(order.of_epochs(len(self), 0, len(self), self._seed))

  def _at(
    self, indices: np.ndarray
  ) -> tuple[list[types.Question], list[np.ndarray]]:
    return (
      [self.questions[i] for i in indices],
      [self._tokens[i] for i in indices],
    )


class Demonstrations:
  """A stream of prompts with their worked solutions.

  Attributes:
    questions: what each example was made from, by its id.
    examples: every one of them, by its id, with the log-probs of its solution
      under what wrote it where every example came with a field `logprobs`.
  """

  def __init__(
    self,
    questions: Sequence[types.Question],
    encoder: Encoder,
    *,
    max_tokens: int,
    overlong: Overlong = "drop",
    share: float = 1.0,
    seed: int = 0,
  ):
    """Encodes every demonstration of the share that is used.

    Args:
      questions: the examples; those without a solution are left out.
      max_tokens: longest prompt plus solution, in tokens.
      overlong: `drop` leaves longer ones out; `truncate` keeps the prompt and
        the start of the solution, and leaves out those whose prompt leaves no
        space for it.
      share: of those with a solution, in [0, 1]; the seed chooses which, and
        a smaller share is part of a larger one.
      seed: of the choice and of the order.

    Raises:
      ConfigError: no solution, or every demonstration is too long.
    """
    solved = [question for question in questions if question.solution]
    if not solved:
      raise errors.ConfigError(
        f"none of the {len(questions)} demonstrations has a solution"
      )
    used = max(round(share * len(solved)), 1 if share > 0 else 0)
    chosen = np.random.default_rng([seed, 0, 1]).permutation(len(solved))[:used]
    encoded = [
      pair for i in np.sort(chosen) for pair in _encoded(solved[i], encoder)
    ]
    lengths = [len(d.prompt) + len(d.solution) for _, d in encoded]
    truncate = overlong == "truncate"
    self._seed = seed
    fitted = [
      (question, d._replace(solution=d.solution[: max_tokens - len(d.prompt)]))
      for (question, d), length in zip(encoded, lengths, strict=True)
      if length <= max_tokens or (truncate and len(d.prompt) < max_tokens)
    ]
    logprobs = _given_logprobs(fitted) or [None] * len(fitted)
    self.examples = [
      d._replace(id=number, logprobs=values, weight=question.weight)
      for number, ((question, d), values) in enumerate(
        zip(fitted, logprobs, strict=True)
      )
    ]
    self.questions = [question for question, _ in fitted]
    self._parts: order.Parts = [(np.arange(len(fitted)), 1.0)]
    self._by_question: dict[str, dict[str, int]] = {}
    for number, (question, d) in enumerate(fitted):
      if _follows_prompt(question, d, encoder):
        same = self._by_question.setdefault(question.asked, {})
        same.setdefault(question.id, number)
    if encoded and not self.examples:
      shortest = (
        f"prompt has {min(len(d.prompt) for _, d in encoded)} tokens"
        if truncate
        else f"prompt plus solution has {min(lengths)} tokens"
      )
      raise errors.ConfigError(
        f"data.max_demonstration_tokens is {max_tokens}, but the shortest "
        f"{shortest}, of {len(encoded)} demonstrations"
      )
    fitting = sum(length <= max_tokens for length in lengths)
    self.counts = Counts(
      given=len(questions),
      without_solution=len(questions) - len(solved),
      not_in_share=len(solved) - used,
      dropped=len(encoded) - len(self.examples),
      truncated=len(self.examples) - fitting,
      kept=len(self.examples),
    )

  def __len__(self) -> int:
    return len(self.examples)

  def take(self, position: int, count: int) -> list[types.Demonstration]:
    """Returns `count` examples from `position` on; none of an empty share."""
    if not self.examples:
      return []
    return self.at(order.of_parts(self._parts, position, count, self._seed))

  def at(self, ids: Iterable[int]) -> list[types.Demonstration]:
    """Returns the examples with these ids."""
    return [self.examples[i] for i in ids]

  def of(
    self, questions: Sequence[types.Question]
  ) -> list[types.Demonstration | None]:
    """Returns each question's own example; None: it has none.

    An example is a question's own if it is of the same text; of several, the
    one with the same id, or else the first.
    """
    found: list[types.Demonstration | None] = []
    for question in questions:
      same = self._by_question.get(question.asked, {})
      number = same.get(question.id, next(iter(same.values()), None))
      found.append(None if number is None else self.examples[number])
    return found

  def set_shares(self, members: Sequence[int], shares: Sequence[float]) -> None:
    """Makes shares of what is taken, as `Prompts.set_shares` does."""
    self._parts = order.parts(members, shares)

  def set_weights(self, weights: Sequence[float]) -> None:
    """Gives each example the weight that its SFT loss is multiplied by.

    Args:
      weights: of each example, in order of `examples`.
    """
    self.examples = [
      example._replace(weight=weight)
      for example, weight in zip(self.examples, weights, strict=True)
    ]

  def set_logprobs(self, logprobs: Sequence[np.ndarray]) -> None:
    """Gives each example the log-probs of its solution's tokens.

    Args:
      logprobs: [tokens] float32 of each example, in order of `examples`.
    """
    self.examples = [
      example._replace(logprobs=values)
      for example, values in zip(self.examples, logprobs, strict=True)
    ]


def _encoded(
  question: types.Question, encoder: Encoder
) -> list[tuple[types.Question, types.Demonstration]]:
  """A question's demonstrations; of several, each has a name of its own."""
  found = encoder.demonstrations(question)
  if len(found) == 1:
    return [(question, found[0])]
  return [
    (question._replace(id=f"{question.id}-turn-{number}"), one)
    for number, one in enumerate(found, start=1)
  ]


def _follows_prompt(
  question: types.Question, demonstration: types.Demonstration, encoder: Encoder
) -> bool:
  """Whether a demonstration begins where a rollout of its question does."""
  if question.dialogue is None or not question.dialogue.turns:
    return True
  prompt = encoder.prompt_tokens(question)
  return np.array_equal(demonstration.prompt, prompt)


def _given_logprobs(
  examples: Sequence[tuple[types.Question, types.Demonstration]],
) -> list[np.ndarray] | None:
  """Returns the log-probs that came with the examples, None if any has none.

  A solution may have been cut where its log-probs were not.
  """
  if any(question.meta.get("logprobs") is None for question, _ in examples):
    return None
  found = []
  for question, (_, _, solution, *_) in examples:
    values = question.meta["logprobs"]
    if len(values) < len(solution):
      raise errors.ConfigError(
        f"the field logprobs of the demonstration {question.id} must have a "
        f"number for each of its {len(solution)} tokens, its end included, got "
        f"{len(values)}"
      )
    given = np.array(values[: len(solution)], np.float32)
    if not np.isfinite(given).all():
      raise errors.ConfigError(
        f"the field logprobs of the demonstration {question.id} must have "
        f"finite numbers, got {values[int(np.argmin(np.isfinite(given)))]}"
      )
    found.append(given)
  return found
