"""Numbers that a file gives to examples, such as weights of demonstrations."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bilevel_jax import errors, types
from bilevel_jax.data import data_files


def of(questions: Sequence[types.Question], path: str) -> list[float]:
  """Returns the weight of each demonstration by a file of theirs.

  Args:
    path: JSONL, as `numbers` has it, with a `weight` of at least 0.

  Raises:
    ConfigError: as `numbers`.
  """
  return numbers(questions, path, field="weight", kind="demonstration")


def numbers(
  questions: Sequence[types.Question],
  path: str,
  *,
  field: str,
  kind: str,
  most: float = math.inf,
) -> list[float]:
  """Returns the number, at least 0, that a file has for each question.

  Args:
    path: JSONL; a row has an `id`, the number and, to be safe, the `question`.
    field: name of the field that the number is in.
    kind: what messages call a question.
    most: greatest number that a question may have.

  Raises:
    ConfigError: a file that cannot be read, a row without a usable number, an
      id that two rows have, or a question that no row is of.
  """
  rows: dict[str, Mapping[str, Any]] = {}
  for where, row in data_files.rows_of(pathlib.Path(path)):
    name = str(row.get("id"))
    if name in rows:
      raise errors.ConfigError(f"{where} has the id {name!r} of another row")
    rows[name] = row
  what = field.replace("_", " ")
  found = []
  for question in questions:
    row = rows.get(question.id)
    if row is None:
      raise errors.ConfigError(
        f"{path} has no {what} for the {kind} {question.id!r} "
        f"({question.question!r:.60}), and every one must have one"
      )
    if row.get("question", question.question) != question.question:
      raise errors.ConfigError(
        f"{path} is of other data: its {question.id!r} has the question "
        f"{row['question']!r:.60}, here it is {question.question!r:.60}"
      )
    number = row.get(field)
    if (
      isinstance(number, bool)
      or not isinstance(number, (int, float))
      or not (math.isfinite(number) and 0 <= number <= most)
    ):
      bound = "at least 0" if most == math.inf else f"0 to {most:g}"
      raise errors.ConfigError(
        f"{path} must have a {what} of {bound} for {question.id!r}, got "
        f"{number!r}"
      )
    found.append(float(number))
  return found
