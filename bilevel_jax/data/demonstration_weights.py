"""Weights that a file gives to demonstrations: another run's, or a user's."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bilevel_jax import errors, types
from bilevel_jax.data import data_files


def of(questions: Sequence[types.Question], path: str) -> list[float]:
  """Returns the weight of each demonstration by a file of theirs.

  Args:
    path: JSONL; a row has an `id`, a `weight` of at least 0 and, to be safe,
      the `question`.

  Raises:
    ConfigError: a file that cannot be read, a row without a usable weight, an
      id that two rows have, or a demonstration that no row is of.
  """
  rows: dict[str, Mapping[str, Any]] = {}
  for where, row in data_files.rows_of(pathlib.Path(path)):
    name = str(row.get("id"))
    if name in rows:
      raise errors.ConfigError(f"{where} has the id {name!r} of another row")
    rows[name] = row
  return [_weight(question, rows, path) for question in questions]


def _weight(
  question: types.Question, rows: Mapping[str, Mapping[str, Any]], path: str
) -> float:
  row = rows.get(question.id)
  if row is None:
    raise errors.ConfigError(
      f"{path} has no weight for the demonstration {question.id!r} "
      f"({question.question!r:.60}), and every one must have one"
    )
  if row.get("question", question.question) != question.question:
    raise errors.ConfigError(
      f"{path} is of other data: its {question.id!r} has the question "
      f"{row['question']!r:.60}, here it is {question.question!r:.60}"
    )
  weight = row.get("weight")
  if (
    isinstance(weight, bool)
    or not isinstance(weight, (int, float))
    or not (math.isfinite(weight) and weight >= 0)
  ):
    raise errors.ConfigError(
      f"{path} must have a weight of at least 0 for {question.id!r}, got "
      f"{weight!r}"
    )
  return float(weight)
