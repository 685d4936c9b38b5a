"""What a run learned of its demonstrations, as rows that people can read."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bilevel_jax import processes
from bilevel_jax.runs import directory, records
from bilevel_jax.training import run as run_lib


def rows(run: run_lib.Run) -> list[dict[str, Any]]:
  """Returns a row for each demonstration, the largest weight first.

  `weight` is what its SFT loss is multiplied by now, `mean_weight` the mean of
  that over the steps so far, `effect` the mean of what it did for the reward
  beside the others of its step, in units of their usual effect (above 0 it
  helped), `standard_error` that of the effect, `times_seen` the steps behind
  it. Effects are None where nothing was measured. The rest is the
  demonstration, as a data file has it. Without a method that learns any of it
  there are no rows.
  """
  ranking, stream = run.learner.method.ranking, run.streams.demonstrations
  if ranking is None or stream is None:
    return []
  # A few numbers for each, whole on every device.
  found = [np.asarray(x, np.float64) for x in ranking(run.state)]
  group = run.settings.data.demonstration_group
  number = lambda x: float(x) if np.isfinite(x) else None
  listed = [
    {
      "id": question.id,
      "group": None if group is None else str(question.meta[group]),
      "weight": float(weight),
      "mean_weight": float(mean_weight),
      "effect": number(effect),
      "standard_error": number(standard_error),
      "times_seen": int(times),
      "question": question.question,
      "answer": question.answer,
      "solution": question.solution,
      "meta": dict(_writable(question.meta)),
    }
    for question, weight, mean_weight, effect, standard_error, times in zip(
      stream.questions, *found, strict=True
    )
  ]
  return sorted(listed, key=lambda row: -row["weight"])


def _writable(meta: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Yields the fields that JSON can hold."""
  for name, value in meta.items():
    try:
      records.to_json({name: value})
    except (TypeError, ValueError):
      continue
    yield name, value


def write(run: run_lib.Run, files: directory.RunDirectory) -> None:
  """Writes `demonstrations.jsonl`, where there is anything to write.

  All processes compute the rows, the first one writes them.
  """
  content = b"".join(records.to_json(row) + b"\n" for row in rows(run))
  if content:
    path = files.demonstrations
    processes.on_first(lambda: records.write_atomically(path, content))
