"""An evaluation beside an earlier one, question by question."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bilevel_jax import errors, types
from bilevel_jax.evaluation import (
  benchmark_table,
  paired,
  result_files,
  summary,
)

# What two evaluations that are compared may differ in: who answered, and how
# the numbers were computed. The questions are compared on their own.
_FREE = {
  *("weights", "weights_hash", "revision", "seed", "dtype", "versions", "date"),
  "benchmarks",
}


class Earlier(NamedTuple):
  """An evaluation that was finished before."""

  weights: str
  records: Mapping[str, Sequence[summary.Record]]  # of each benchmark


def read_earlier(
  out: pathlib.Path,
  settings: Mapping[str, Any],
  asked: Mapping[str, Sequence[types.Question]],
) -> Earlier:
  """Returns the records of an earlier evaluation of the same benchmarks.

  Args:
    settings: what the scores of the evaluation beside it depend on.
    asked: the questions of each benchmark.

  Raises:
    ConfigError: it is not there or not finished, or what was asked, or how,
      was something else: then the weights alone would not explain a
      difference.
  """
  theirs = result_files.earlier_settings(out)
  if theirs is None:
    raise errors.ConfigError(
      f"--against takes the --out of an earlier evaluation, got {out}"
    )
  ours = json.loads(json.dumps(settings))
  for name, value in ours.items():
    if name not in _FREE and theirs.get(name) != value:
      raise errors.ConfigError(
        f"--against {out} has {name} {theirs.get(name)!r}, not {value!r}: only "
        "the weights may differ"
      )
  records = {}
  for name, questions in asked.items():
    there = theirs["benchmarks"].get(name)
    if there is None:
      raise errors.ConfigError(
        f"--against {out} has no answers to {name}, only to "
        f"{', '.join(theirs['benchmarks'])}"
      )
    result_files.check_same(
      f"--against {out}", name, there, ours["benchmarks"][name]
    )
    records[name] = _records(out, name, questions)
  return Earlier(theirs["weights"], records)


def compare(
  earlier: Earlier, records: Mapping[str, Sequence[summary.Record]]
) -> dict[str, Any]:
  """Returns how much better the records are: JSON.

  For each benchmark, and for the mean of the paper's five where all are there:
  the accuracies before and now, their difference as [value, low, high] with a
  95% interval over questions, and a two-sided p-value.
  """
  pairs = {
    name: (_accuracies(earlier.records[name]), _accuracies(ours))
    for name, ours in records.items()
  }
  result: dict[str, Any] = {
    "weights": earlier.weights,
    "benchmarks": {
      name: _json(*pair, paired.by_question(*pair))
      for name, pair in pairs.items()
    },
  }
  if pairs.keys() >= set(benchmark_table.FIVE):
    five = [pairs[name] for name in benchmark_table.FIVE]
    theirs = np.array([before.mean() for before, _ in five])
    ours = np.array([now.mean() for _, now in five])
    result["mean_of_five"] = _json(theirs, ours, paired.mean_of(five))
  return result


def _json(
  theirs: np.ndarray, ours: np.ndarray, difference: paired.Difference
) -> dict[str, Any]:
  return {
    "before": float(theirs.mean()),
    "now": float(ours.mean()),
    "difference": list(difference[:3]),
    "p": difference.p,
  }


def _accuracies(records: Sequence[summary.Record]) -> np.ndarray:
  return np.array([np.mean(record["correct"]) for record in records])


def _records(
  out: pathlib.Path, name: str, questions: Sequence[types.Question]
) -> Sequence[summary.Record]:
  records, _ = result_files.matching(
    out / "records" / f"{name}.jsonl", questions
  )
  if len(records) < len(questions):
    raise errors.ConfigError(
      f"--against {out} has answers to {len(records)} of {len(questions)} "
      f"questions of {name}: its own command goes on from there"
    )
  return records
