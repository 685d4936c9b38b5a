"""From a source in the settings to questions: files, the hub, tasks."""

import gzip
import hashlib
import itertools
import math
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bilevel_jax import errors, types
from bilevel_jax.data import json_lines, settings, tasks

FIELDS = ("id", "question", "answer", "solution")
# Fields of programs' tests, which stand in for an answer.
_TESTS = ("tests", "input_output", "test_list", "test", "private_test_cases")
_BETWEEN = {"answer": ",", "solution": "\n\n"}  # where there are several

# (where it stands, for messages; its fields)
_Row = tuple[str, Mapping[str, Any]]


def load(source: settings.Source) -> list[types.Question]:
  """Returns the questions that a source names.

  A row's `question` and `answer` must be there; of several answers, or
  solutions, one text is made; a row with tests of programs needs none. Else,
  without an `answer`, what follows `####` in the
  `solution` is taken (the format of GSM8K: its own files load with
  `fields={"solution": "answer"}`). `solution` defaults to None, `id` to a hash
  of the question: the same in every file, whatever its name. null, NaN and
  Infinity are missing values. Other fields go to `meta`, and a field `meta`
  that is a mapping is merged into it.

  Args:
    source: a procedural task, a JSONL or JSONL.gz file, or a Hugging Face
      data set; a file is read in place of the data set beside it. `fields`
      maps our names to theirs, `first` and `count` choose a slice.

  Raises:
    ConfigError: nothing there, not JSON, a field that is missing or is not
      text, an id that two rows have, or fewer examples than asked for.
  """
  unknown = [name for name in source.fields if name not in FIELDS]
  if unknown:
    raise errors.ConfigError(
      f"fields maps {', '.join(FIELDS)} to a field of the data, got "
      f"{unknown[0]!r}"
    )
  if source.task is not None:
    return tasks.generate(
      source.task,
      first=source.first,
      count=source.count,
      seed=source.seed,
      split=source.split,
      options=source.task_options,
    )
  if source.path is not None:
    name, rows = source.path, file_rows(pathlib.Path(source.path))
  elif source.hub is not None:
    name, rows = source.hub, _hub_rows(source)
  else:
    raise errors.ConfigError("a source needs one of path, hub, task, got none")
  # A file beside a hub id is a copy of it with our own names.
  fields = {} if source.path and source.hub else source.fields
  seen: dict[str, str] = {}  # where each id was
  return [
    _identified(_question(row, fields), row[0], seen)
    for row in _slice(rows, name, source)
  ]


def _identified(
  question: types.Question, where: str, seen: dict[str, str]
) -> types.Question:
  if question.id:
    name = question.id
    if name in seen:
      raise errors.ConfigError(
        f"{where} has the id {name!r} of {seen[name]}: ids must differ"
      )
  else:
    text = question.question.encode()
    content = name = hashlib.blake2b(text, digest_size=8).hexdigest()
    repeated = 1
    while name in seen:
      repeated += 1
      name = f"{content}-{repeated}"
  seen[name] = where
  return question._replace(id=name)


def _slice(
  rows: Iterable[_Row], name: str, source: settings.Source
) -> Iterator[_Row]:
  stop = None if source.count is None else source.first + source.count
  seen = 0
  for seen, row in enumerate(itertools.islice(rows, stop), start=1):
    if seen > source.first:
      yield row
  if not seen:
    raise errors.ConfigError(f"{name} has no examples")
  if seen <= source.first or (stop is not None and seen < stop):
    wanted = "at least one" if source.count is None else source.count
    raise errors.ConfigError(
      f"{name} has {seen} examples, but first is {source.first} and count is "
      f"{wanted}"
    )


def file_rows(path: pathlib.Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Yields (where it stands, the object) for each line of JSONL or JSONL.gz.

  Raises:
    ConfigError: a file that is not there, cannot be read, or is not JSON.
  """
  if not path.is_file():
    raise errors.ConfigError(f"data file {path} does not exist")
  # The first two bytes, not the name, say whether a file is compressed.
  try:
    with path.open("rb") as start:
      compressed = start.read(2) == b"\x1f\x8b"
    opener = gzip.open if compressed else open
    # A byte-order mark is no text, and only a newline ends a line.
    with opener(path, "rt", encoding="utf-8-sig", newline="\n") as lines:
      for number, line in enumerate(lines, start=1):
        if line.strip():
          where = f"{path} line {number}"
          yield where, json_lines.parse(line, where)
  except UnicodeDecodeError as error:
    raise errors.ConfigError(f"{path} is not UTF-8 text: {error}") from error
  except (OSError, EOFError, zlib.error) as error:
    raise errors.ConfigError(f"{path} cannot be read: {error}") from error


def _hub_rows(source: settings.Source) -> Iterator[_Row]:
  import datasets

  hub = str(source.hub)
  local = pathlib.Path(hub)
  try:
    if (local / "dataset_dict.json").is_file():
      rows = datasets.load_from_disk(hub)[source.split]
    elif (local / "state.json").is_file():
      rows = datasets.load_from_disk(hub)
    else:
      rows = datasets.load_dataset(
        hub, source.name, split=source.split, revision=source.revision
      )
  except Exception as error:  # the hub's clients raise dozens of types
    reason = " ".join(str(error).split())
    raise errors.ConfigError(
      f"data set {hub} (name {source.name}, split {source.split}) cannot be "
      f"loaded: {type(error).__name__}: {reason}"
    ) from error
  for number, row in enumerate(rows):
    yield f"{hub} row {number}", dict(row)


def _question(row: _Row, fields: Mapping[str, str]) -> types.Question:
  where, values = row
  # A field that the map gives to one of ours is not taken for another one by
  # its name: GSM8K's `answer` is our `solution`.
  taken = set(fields.values())
  names = {
    field: fields.get(field, None if field in taken else field)
    for field in FIELDS
  }

  def read(field: str) -> str | None:
    name = names[field]
    if name is None or _is_missing(values.get(name)):
      if field in fields:
        raise _missing(str(name), row)
      return None
    value = values[name]
    if field in _BETWEEN and _are_texts(value):
      value = _BETWEEN[field].join(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
      raise errors.ConfigError(
        f"{where}: field {name!r} must be text or a number, got "
        f"{json_lines.kind(value)}"
      )
    json_lines.check_text(str(value), f"{where}: field {name!r}")
    return str(value)

  question, answer, solution = map(read, ("question", "answer", "solution"))
  if question is None:
    raise _missing("question", row)
  if answer is None and solution is not None and "####" in solution:
    answer = solution.rpartition("####")[2].strip()
  if answer is None and any(values.get(name) for name in _TESTS):
    answer = ""
  if answer is None:
    raise _missing("answer", row)
  rest = {k: v for k, v in values.items() if k not in names.values()}
  nested = rest.pop("meta", None)
  if isinstance(nested, Mapping):
    rest |= nested
  elif nested is not None:
    rest["meta"] = nested
  return types.Question(
    read("id") or "", question, answer, solution or None, rest
  )


def _is_missing(value: Any) -> bool:
  return value is None or (
    isinstance(value, float) and not math.isfinite(value)
  )


def _are_texts(value: Any) -> bool:
  return (
    isinstance(value, list)
    and bool(value)
    and all(isinstance(text, str) for text in value)
  )


def _missing(name: str, row: _Row) -> errors.ConfigError:
  where, values = row
  if name in values:
    return errors.ConfigError(f"{where} has no value in the field {name!r}")
  return errors.ConfigError(
    f"{where} lacks the field {name!r}, it has {', '.join(values) or 'none'} "
    "(`fields` maps our names to theirs)"
  )


def rewritten(
  questions: Sequence[types.Question], template: str
) -> list[types.Question]:
  """Returns the questions with solutions that a template makes.

  A question that has no solution gets one if the template asks for none.

  Args:
    template: formatted with question, answer, solution, id and the meta's
      fields.

  Raises:
    ConfigError: a template that is broken, or asks for another field.
  """

  def solution(question: types.Question) -> str | None:
    fields = {
      **question.meta,
      "id": question.id,
      "question": question.question,
      "answer": question.answer,
      "solution": question.solution,
    }
    if question.solution is None and "{solution" in template:
      return None
    try:
      return template.format(**fields)
    except (LookupError, AttributeError, ValueError, TypeError) as error:
      raise errors.ConfigError(
        f"data.solution {template!r} must use only fields of the question "
        f"({', '.join(fields)}), got {error} for question {question.id}"
      ) from error

  return [
    question._replace(solution=solution(question)) for question in questions
  ]
