"""Sampling in rounds: what is sampled next may depend on what was rewarded.

Inside a group, later samples may begin with a part of the question's
demonstration, as earlier ones' rewards advise (`guided`); and questions whose
samples say nothing may give way to others (`dynamic_sampling`). Every token's
key is folded from the question, the sample and its index, so a round samples
what it would have sampled alone, and a resumed run what the first one did.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from bilevel_jax.rollout import answers
from bilevel_jax.types import Demonstration, Question, Requests, Rollout, Scores


class Solutions(Protocol):
  """Finds questions' own demonstrations."""

  def of(self, questions: Sequence[Question]) -> Sequence[Demonstration | None]:
    """Returns each question's own demonstration, None where it has none."""
    ...


class Progress(NamedTuple):
  """What is known of a step's P questions before a round of their samples."""

  step: int
  samples: int  # G, that each question will have
  rewards: np.ndarray  # [P, n] of those that it has
  scored: np.ndarray  # [P, n] bool
  solutions: np.ndarray  # [P] int, tokens of its demonstration, 0 without one
  seed: Sequence[int]  # of a guide's random choices in this round


Guide: TypeAlias = Callable[[Progress], np.ndarray]
"""Progress -> [P, m] int, m at least 1: how many tokens of its demonstration
each of a question's next m samples begins with."""

Ask: TypeAlias = Callable[[Sequence[Question], Requests], answers.Answers]


def guided(
  ask: Ask,
  questions: Sequence[Question],
  requests: Requests,
  guide: Guide,
  solutions: Solutions | None,
  *,
  step: int,
  seed: Sequence[int] = (0,),
) -> answers.Answers:
  """Returns the answers to P questions, G of each, sampled as a guide says.

  Args:
    requests: their P prompts, G samples each; a total budget is shared among
      the rounds by their samples.
    solutions: where a question's demonstration is found; None: none has one.
    step: of the run, for the guide's schedule.
  """
  samples = requests.samples_per_prompt
  own = solutions.of(questions) if solutions else [None] * len(questions)
  tokens = [np.zeros(0, np.int32) if d is None else d.solution for d in own]
  rewards = np.zeros((len(questions), 0), np.float32)
  scored = np.zeros(rewards.shape, bool)
  parts: list[answers.Answers] = []
  while (first := rewards.shape[1]) < samples:
    lengths = guide(
      Progress(
        step=step,
        samples=samples,
        rewards=rewards,
        scored=scored,
        solutions=np.array(list(map(len, tokens)), int),
        seed=(*seed, first),
      )
    )[:, : samples - first]
    total, sampled = requests.total_tokens, lengths.shape[1]
    part = dataclasses.replace(
      requests,
      samples_per_prompt=sampled,
      first_sample=requests.first_sample + first,
      total_tokens=None if total is None else total * sampled // samples,
      prefixes=[
        solution[:length]
        for solution, row in zip(tokens, lengths, strict=True)
        for length in row
      ],
    )
    parts.append(ask(questions, part))
    of_part = parts[-1].scores
    rewards = np.concatenate([rewards, of_part.rewards.reshape(-1, sampled)], 1)
    scored = np.concatenate([scored, of_part.scored.reshape(-1, sampled)], 1)
  of = np.concatenate([part.rollout.prompt_index for part in parts])
  return _gathered(parts, np.argsort(of, kind="stable"), requests)


def dynamic_sampling(
  ask: Callable[[], answers.Answers], *, rounds: int
) -> tuple[answers.Answers, answers.Answers, np.ndarray]:
  """Returns all answers, those to learn from, and which groups have signal.

  DAPO's dynamic sampling (arXiv 2503.14476): a group has signal if its scored
  rewards are not all equal; questions are added until as many groups have
  signal as a round has, or there were `rounds` of them. The first of these are
  learned from; where too few do, others fill their places.

  Args:
    ask: draws and scores the next P questions.
    rounds: at most, at least 1.

  Returns:
    Answers to P * (rounds that it took) questions; to P of them; and [P] bool.
  """
  parts = [ask()]
  wanted = len(parts[0].rollout.requests.prompts)
  while (
    len(parts) < rounds
    and sum(map(np.sum, map(answers.has_signal, parts))) < wanted
  ):
    parts.append(ask())
  whole = [part.rollout.requests for part in parts]
  requests = dataclasses.replace(
    whole[0],
    prompts=[prompt for part in whole for prompt in part.prompts],
    prompt_ids=np.concatenate([part.prompt_ids for part in whole]),
    max_new_tokens=np.concatenate([part.budgets for part in whole]),
  )
  samples = requests.samples_per_prompt
  rows = np.arange(len(requests.prompts) * samples)
  everything = _gathered(parts, rows, requests)
  with_signal = answers.has_signal(everything)
  chosen = np.sort(np.argsort(~with_signal, kind="stable")[:wanted])
  rows = (samples * chosen[:, None] + np.arange(samples)).ravel()
  kept = dataclasses.replace(
    requests,
    prompts=[requests.prompts[i] for i in chosen],
    prompt_ids=requests.prompt_ids[chosen],
    max_new_tokens=requests.budgets[chosen],
  )
  return everything, _gathered([everything], rows, kept), with_signal[chosen]


def _gathered(
  parts: Sequence[answers.Answers], rows: np.ndarray, requests: Requests
) -> answers.Answers:
  """Returns those rows of several answers, one after the other, as one."""

  def arrays(cls: type, of: str) -> dict[str, np.ndarray]:
    names = [f.name for f in dataclasses.fields(cls) if f.name != "requests"]
    items = [getattr(part, of) for part in parts]
    return {
      name: np.concatenate([getattr(item, name) for item in items])[rows]
      for name in names
      if all(getattr(item, name) is not None for item in items)
    }

  def chosen(lists: Iterable[Sequence[Any]]) -> list[Any]:
    every = list(itertools.chain.from_iterable(lists))
    return [every[row] for row in rows]

  prefixes = [part.rollout.requests.prefixes or () for part in parts]
  if any(prefixes):
    requests = dataclasses.replace(requests, prefixes=chosen(prefixes))
  return answers.Answers(
    questions=chosen(part.questions for part in parts),
    completions=chosen(part.completions for part in parts),
    rollout=Rollout(requests=requests, **arrays(Rollout, "rollout")),
    scores=Scores(**arrays(Scores, "scores")),
    rollout_s=sum(part.rollout_s for part in parts),
    reward_s=sum(part.reward_s for part in parts),
  )
