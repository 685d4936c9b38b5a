"""Accuracy on held-out questions, with an interval."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from bilevel_jax.data import batches
from bilevel_jax.evaluation import scoring
from bilevel_jax.rollout import answers
from bilevel_jax.types import Policy, Requests, Sampling, Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """How many of a set of questions were answered correctly."""

  correct: int
  questions: int
  length: float  # mean tokens of a completion
  truncated_share: float
  unscorable: int

  @property
  def accuracy(self) -> float:
    """Share of questions answered correctly; unscorable ones count as wrong."""
    return self.correct / self.questions

  @property
  def interval(self) -> tuple[float, float]:
    """95% Wilson interval of the accuracy."""
    return scoring.wilson_interval(self.correct, self.questions)

  def metrics(self) -> dict[str, float]:
    """Returns what is logged."""
    low, high = self.interval
    found = {
      "accuracy": self.accuracy,
      "accuracy_low": low,
      "accuracy_high": high,
      **dataclasses.asdict(self),
    }
    return {f"evaluation/{name}": value for name, value in found.items()}

  @classmethod
  def from_metrics(cls, logged: Mapping[str, float]) -> "Result":
    """Returns the result that `metrics` was made of."""
    fields: Any = dataclasses.fields(cls)
    return cls(
      **{f.name: f.type(logged[f"evaluation/{f.name}"]) for f in fields}
    )


def evaluate(
  policy: Policy,
  weights: Tree,
  prompts: batches.Prompts,
  tokenizer: answers.Decoder,
  scorer: answers.Scorer,
  *,
  eos_ids: tuple[int, ...],
  max_new_tokens: int,
  temperature: float,
  max_rows: int,
  key: jax.Array,
  stop: tuple[str, ...] = (),
  cache_bytes: int | None = None,
  sharding: jax.sharding.NamedSharding | None = None,
) -> tuple[Result, list[dict[str, Any]]]:
  """Returns pass@1 on every question of a stream, and a record of each answer.

  Args:
    key: of the samples, where the temperature is not 0.
    cache_bytes: bound on the KV cache of a device; None: none.
    sharding: of an array of rows; None: one device.
  """
  questions, tokens, ids = prompts.take(0, len(prompts))
  answered = answers.answer(
    policy,
    weights,
    questions,
    Requests(
      prompts=tokens,
      prompt_ids=ids,
      samples_per_prompt=1,
      max_new_tokens=max_new_tokens,
      eos_ids=eos_ids,
      stop=stop,
      sampling=Sampling(temperature=temperature),
      key=key,
    ),
    tokenizer,
    scorer,
    max_rows=max_rows,
    cache_bytes=cache_bytes,
    sharding=sharding,
  )
  scores, rollout = answered.scores, answered.rollout
  result = Result(
    correct=int((scores.correct & scores.scored).sum()),
    questions=len(questions),
    length=float(rollout.lengths.mean()),
    truncated_share=rollout.share_ended_by("length"),
    unscorable=int((~scores.scored).sum()),
  )
  return result, answers.records(answered)
