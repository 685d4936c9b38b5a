"""From the records of answered questions to scores with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bilevel_jax.evaluation import scoring
from bilevel_jax.rewards import extraction, mathematics
from bilevel_jax.rollout import answers
from bilevel_jax.types import FINISH_REASONS

Record = Mapping[str, Any]


def record(
  answered: answers.Answers, number: int, *, votes: bool = True
) -> dict[str, Any]:
  """Returns what is kept of a question: JSON, all its samples.

  Args:
    votes: whether answers can be counted; programs cannot.
  """
  rollout, scores = answered.rollout, answered.scores
  samples = rollout.requests.samples_per_prompt
  rows = range(number * samples, (number + 1) * samples)
  question = answered.questions[rows[0]]
  texts = [answered.completions[n] for n in rows]
  return {
    "id": question.id,
    "question": question.question,
    "answer": question.answer,
    "correct": [bool(scores.correct[n] and scores.scored[n]) for n in rows],
    "scored": [bool(scores.scored[n]) for n in rows],
    "final": [
      mathematics.normalised(extraction.extract(text)) if votes else None
      for text in texts
    ],
    "tokens": [int(rollout.lengths[n]) for n in rows],
    "finish_reason": [FINISH_REASONS[rollout.finish_reasons[n]] for n in rows],
    "completions": texts,
  }


def summarise(records: Sequence[Record]) -> dict[str, Any]:
  """Returns the scores of a benchmark: estimates are [value, low, high].

  With G samples of each question: avg@G is the mean of all; pass@k, for k a
  power of two and G, the chance that k samples hold a right one; maj@G the
  chance that the most frequent final answer is right, where answers can be
  counted. Intervals hold 95%, by question. What could not be scored counts as
  wrong.

  Args:
    records: of all questions, as `record` makes them, as many samples each.
  """
  correct = np.array([r["correct"] for r in records], bool)
  samples = correct.shape[1]
  scores = {f"avg@{samples}": scoring.accuracy(correct)}
  if samples > 1:
    count = correct.sum(axis=1)
    powers = {2**n for n in range(1, samples.bit_length())}
    for k in sorted((powers | {samples}) - {1}):
      if k <= samples:
        passed = scoring.pass_at_k(samples, count, k)
        scores[f"pass@{k}"] = scoring.accuracy(passed)
    if all(None not in r["final"] for r in records):
      votes = np.array([_majority(r) for r in records])
      scores[f"maj@{samples}"] = scoring.accuracy(votes)
  tokens = np.array([r["tokens"] for r in records], np.float64)
  reasons = [reason for r in records for reason in r["finish_reason"]]
  scored = np.array([r["scored"] for r in records], bool)
  return {
    "questions": len(records),
    "samples": samples,
    "scores": {
      "pass@1" if name == "avg@1" else name: list(estimate)
      for name, estimate in scores.items()
    },
    "tokens": list(scoring.bootstrap(tokens.mean(axis=1))),
    "truncated_share": reasons.count("length") / len(reasons),
    "unscorable_share": 1 - float(scored.mean()),
  }


def mean_of(
  names: Sequence[str], results: Mapping[str, Mapping[str, Any]]
) -> list[float] | None:
  """Returns the plain mean of the first score of benchmarks; None: one lacks.

  It is [value, low, high], as the scores are.
  """
  if not all(name in results for name in names):
    return None
  return list(
    scoring.mean(
      [
        scoring.Estimate(*next(iter(results[name]["scores"].values())))
        for name in names
      ]
    )
  )


def _majority(record: Record) -> float:
  # Right answers are one answer, however they are written.
  right = "the right one"
  finals = [
    right if correct else f"{final} "
    for final, correct in zip(record["final"], record["correct"], strict=True)
  ]
  return scoring.majority(finals, right)
