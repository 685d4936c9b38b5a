"""Questions answered by a policy and scored: text, tokens and rewards."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from bilevel_jax import processes
from bilevel_jax.objectives import policy_gradient
from bilevel_jax.rollout import engine
from bilevel_jax.types import (
  FINISH_REASONS,
  Policy,
  Question,
  Requests,
  Rollout,
  Scores,
  Tree,
)


class Decoder(Protocol):
  """Makes text of tokens; for rewards and logs, never to encode it again."""

  def decode(self, tokens: Any) -> str:
    """Returns the text of token ids."""
    ...


class Scorer(Protocol):
  """Scores completions of questions."""

  def score(self, completions: list[str], questions: list[Question]) -> Scores:
    """Returns the scores of N completions of N questions."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
  """N completions, prompt-major, with their questions and rewards."""

  questions: list[Question]  # [N], a question for each of its samples
  completions: list[str]  # [N]
  rollout: Rollout
  scores: Scores
  rollout_s: float
  reward_s: float
  counted: np.ndarray | None = None
  """[N] bool: what may have weight, once advantages are known; None: all."""


def answer(
  policy: Policy,
  weights: Tree,
  questions: Sequence[Question],
  requests: Requests,
  decoder: Decoder,
  scorer: Scorer,
  *,
  max_rows: int,
  cache_bytes: int | None = None,
  sharding: jax.sharding.NamedSharding | None = None,
) -> Answers:
  """Returns the policy's answers to P questions, G of each.

  Args:
    cache_bytes: bound on the KV cache of a device; None: none.
    sharding: of an array of rows; None: one device.
  """
  started = time.perf_counter()
  rollout = engine.generate(
    policy,
    weights,
    requests,
    decode=decoder.decode,
    max_rows=max_rows,
    cache_bytes=cache_bytes,
    sharding=sharding,
  )
  generated = time.perf_counter()
  completions = [
    decoder.decode(tokens[:length])
    for tokens, length in zip(rollout.tokens, rollout.lengths, strict=True)
  ]
  asked = [questions[i] for i in rollout.prompt_index]

  def score(share: Sequence[int]) -> dict[str, np.ndarray]:
    scores = scorer.score(
      [completions[n] for n in share], [asked[n] for n in share]
    )
    return {k: v for k, v in vars(scores).items() if v is not None}

  scores = Scores(**processes.divide(len(asked), score))
  return Answers(
    questions=asked,
    completions=completions,
    rollout=rollout,
    scores=scores,
    rollout_s=generated - started,
    reward_s=time.perf_counter() - generated,
  )


def measure(answers: Answers, parts: Sequence[str] = ()) -> dict[str, float]:
  """Returns what is logged about a step's rollouts.

  Rewards are means over scored completions, left out where there is none;
  pass@group is the share of questions with a correct completion; lengths are in
  tokens, EOS included; rollout/tokens are those that were sampled, and
  time/rollout_programs counts what this process compiled for sampling so far.
  Where completions began with given tokens: the share of those that did, and
  the accuracy of the others.

  Args:
    parts: names of the reward's parts; of several, each one's mean is logged.
  """
  rollout, scores = answers.rollout, answers.scores
  scored = scores.scored
  groups = scores.correct.reshape(-1, rollout.requests.samples_per_prompt)
  tokens = sampled_tokens(answers)
  found = {}
  if scored.any():
    found["rl/reward"] = float(scores.rewards[scored].mean(dtype=np.float64))
    found["rl/accuracy"] = float(scores.correct[scored].mean())
  several = _columns(scores.values) if len(parts) > 1 else ()
  for part, values in zip(parts, several, strict=False):
    if (there := ~np.isnan(values)).any():
      found[f"reward/{part}"] = float(values[there].mean(dtype=np.float64))
  if rollout.requests.prefixes is not None:
    prefixed = rollout.prefix_lengths > 0
    found["rollout/guided_share"] = float(prefixed.mean())
    found["rollout/given_tokens"] = float(rollout.prefix_lengths.sum())
    if (alone := scored & ~prefixed).any():
      found["rl/accuracy_unguided"] = float(scores.correct[alone].mean())
  return {
    **found,
    "rl/pass_at_group": float(groups.any(axis=1).mean()),
    "rl/groups_without_advantage": float(np.mean(~has_signal(answers))),
    "rl/unscorable": float((~scored).sum()),
    "rollout/length": float(rollout.lengths.mean()),
    "rollout/truncated_share": rollout.share_ended_by("length"),
    "rollout/errors": float(
      np.sum(rollout.finish_reasons == FINISH_REASONS.index("error"))
    ),
    "rollout/cut_by_total": float(rollout.cut_by_total.sum()),
    "rollout/tokens": float(tokens),
    "time/rollout_s": answers.rollout_s,
    "time/rollout_programs": float(sum(engine.programs().values())),
    "time/reward_s": answers.reward_s,
  }


def _columns(values: np.ndarray | None) -> list[np.ndarray]:
  return [] if values is None else list(values.T)


def has_signal(answers: Answers) -> np.ndarray:
  """Returns [P] bool: two scored samples of the group differ in reward."""
  scores = answers.scores
  groups = (-1, answers.rollout.requests.samples_per_prompt)
  return policy_gradient.has_signal(
    scores.rewards.reshape(groups), scores.scored.reshape(groups)
  )


def with_bonus(answers: Answers, bonus: np.ndarray) -> Answers:
  """Returns the answers with something added to what each is worth.

  Args:
    bonus: [N], added where a reward was given; what is correct stays so.
  """
  scores = answers.scores
  rewards = np.where(scores.scored, scores.rewards + bonus, 0.0)
  return dataclasses.replace(
    answers, scores=dataclasses.replace(scores, rewards=rewards)
  )


def sampled_tokens(answers: Answers) -> int:
  """Returns the tokens that were sampled, those that were given left out."""
  return int((answers.rollout.lengths - answers.rollout.prefix_lengths).sum())


def records(answers: Answers, count: int | None = None) -> list[dict[str, Any]]:
  """Returns completions with their questions and rewards, as JSON.

  Args:
    count: the first samples of so many questions at most, spread over the
      step; None: every completion.
  """
  per_prompt = answers.rollout.requests.samples_per_prompt
  prompts = len(answers.rollout.requests.prompts)
  chosen = np.arange(prompts * per_prompt)
  if count is not None:
    spread = np.linspace(0, prompts - 1, min(count, prompts)).astype(int)
    chosen = np.unique(spread) * per_prompt
  given = answers.rollout.prefix_lengths
  return [_record(answers, n, int(given[n])) for n in chosen.tolist()]


def _record(answers: Answers, n: int, given: int) -> dict[str, Any]:
  question, scores = answers.questions[n], answers.scores
  return {
    "question_id": question.id,
    "prompt": question.question,
    "completion": answers.completions[n],
    "answer": question.answer,
    "reward": float(scores.rewards[n]) if scores.scored[n] else None,
    "correct": bool(scores.correct[n] and scores.scored[n]),
    "finish_reason": FINISH_REASONS[answers.rollout.finish_reasons[n]],
    "tokens": int(answers.rollout.lengths[n]),
    "given_tokens": given,
  }
