"""What an evaluation leaves: settings.json, scores.json, records/NAME.jsonl."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bilevel_jax import config, types


def claim(out: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """Makes the directory, for these settings alone.

  Benchmarks may be added to a directory; nothing else may differ.

  Args:
    out: the directory.
    settings: what the scores depend on, with a mapping `benchmarks`.

  Raises:
    ConfigError: it is there, with results for other settings.
  """
  path = out / "settings.json"
  new = json.loads(json.dumps(settings))
  if path.is_file():
    try:
      old = json.loads(path.read_text(encoding="utf-8"))
      shared = {**old, "benchmarks": {**old["benchmarks"], **new["benchmarks"]}}
    except (ValueError, LookupError, TypeError) as error:
      raise config.ConfigError(f"{path} cannot be read: {error}") from error
    for name, value in new.items():
      theirs = old.get(name)
      if name == "benchmarks":
        value = {n: v for n, v in value.items() if n in theirs}
        theirs = {n: v for n, v in theirs.items() if n in value}
      if value != theirs:
        raise config.ConfigError(
          f"--out {out} has results for another {name}: {theirs!r}, not "
          f"{value!r}; name another directory"
        )
    new = shared
  (out / "records").mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(new, indent=2) + "\n", encoding="utf-8")


def read(
  path: pathlib.Path, questions: Sequence[types.Question]
) -> list[dict[str, Any]]:
  """Returns the records of an earlier call; a line half written is cut off.

  Args:
    path: of the records.
    questions: that they answer, in this order.

  Raises:
    ConfigError: they answer other questions.
  """
  records, whole = _whole_lines(path)
  for record, question in zip(records, questions, strict=False):
    if record.get("question") != question.question:
      raise config.ConfigError(f"{path} holds answers to other questions")
  if path.is_file():
    with path.open("rb+") as file:
      file.truncate(whole)
  return records[: len(questions)]


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the records of a file, but for a line half written; [] without it.

  Args:
    path: of the records.
  """
  return _whole_lines(path)[0]


def _whole_lines(path: pathlib.Path) -> tuple[list[dict[str, Any]], int]:
  """Returns the records of the whole lines, and how many bytes these are."""
  records: list[dict[str, Any]] = []
  whole = 0
  data = path.read_bytes() if path.is_file() else b""
  for line in data.splitlines(keepends=True):
    try:
      if not line.endswith(b"\n"):
        break
      records.append(json.loads(line))
    except ValueError:
      break
    whole += len(line)
  return records, whole


def write(
  out: pathlib.Path,
  settings: Mapping[str, Any],
  results: Mapping[str, Any],
  mean_of_five: Sequence[float] | None,
  overlap: Mapping[str, Any] | None,
  compared: Mapping[str, Any],
) -> None:
  """Writes scores.json.

  Args:
    out: the directory.
    settings: what the scores depend on.
    results: a summary for each benchmark.
    mean_of_five: of the paper's five, where all are there, with its interval.
    overlap: what training data hold of each benchmark, where it was asked.
    compared: differences from each earlier evaluation, where it was asked.
  """
  scores: dict[str, Any] = {"settings": settings, "benchmarks": results}
  if mean_of_five is not None:
    scores["mean_of_five"] = mean_of_five
  if overlap is not None:
    scores["overlap"] = overlap
  if compared:
    scores["against"] = compared
  (out / "scores.json").write_text(
    json.dumps(scores, indent=2) + "\n", encoding="utf-8"
  )
