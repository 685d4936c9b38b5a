"""From a source in the settings to questions: files, the hub, tasks."""

import dataclasses
import hashlib
import itertools
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bilevel_jax import errors, types
from bilevel_jax.data import columns, data_files, rows, settings, tasks


class Part(NamedTuple):
  """The questions of one of several sources."""

  questions: list[types.Question]
  share: float  # of what is taken, beside those of the others


def load(
  source: settings.Source, needs_answers: Iterable[str] = ()
) -> list[types.Question]:
  """Returns the questions that a source names.

  A row's form is told by its columns (`data.rows`). Of several answers, or
  solutions, one text is made. Without an answer, what follows `####` in the
  solution is taken, or its last box. `id` defaults to a hash of what is asked:
  the same in every file, whatever its name. null, NaN and Infinity are missing
  values. What nothing else reads goes to `meta`, and a field `meta` that is a
  mapping is merged into it.

  Args:
    source: a procedural task, a data file, a Hugging Face data set, or several
      of them; a file is read in place of the data set beside it. `fields`
      maps our names to theirs, `first` and `count` choose a slice.
    needs_answers: what reads answers, so that each row must have one.

  Raises:
    ConfigError: nothing there, a row that cannot be read, an id that two rows
      have, or fewer examples than asked for.
  """
  parts = load_parts(source, needs_answers)
  return [question for part in parts for question in part.questions]


def load_parts(
  source: settings.Source, needs_answers: Iterable[str] = ()
) -> list[Part]:
  """Returns the same by its sources, of which there may be one.

  Raises:
    ConfigError: as `load`.
  """
  unknown = [name for name in source.fields if name not in columns.FIELDS]
  if unknown:
    raise errors.ConfigError(
      f"fields maps {', '.join(columns.FIELDS)} to a field of the data, got "
      f"{unknown[0]!r}"
    )
  if source.task is not None:
    questions = tasks.generate(
      source.task,
      first=source.first,
      count=source.count,
      seed=source.seed,
      split=source.split,
      options=source.task_options,
    )
    return [Part(questions, 1.0)]
  seen: dict[str, str] = {}  # where each id was
  if not source.sources:
    return [Part(_of_one(source, seen, tuple(needs_answers)), 1.0)]
  shares = shares_of(source.sources)
  parts = []
  for name, share in shares.items():
    one = dataclasses.replace(source, sources=(), **named(name))
    found = load(one, needs_answers)
    parts.append(Part(found, (share or len(found))))
    for question in found:
      if question.id in seen:
        raise errors.ConfigError(
          f"{name} has the id {question.id!r} of {seen[question.id]}: ids must "
          "differ"
        )
      seen[question.id] = name
  if None in shares.values():
    return [Part([q for part in parts for q in part.questions], 1.0)]
  return parts


def shares_of(sources: Sequence[str]) -> dict[str, float | None]:
  """Returns the share of each source; None of all where none says one.

  Raises:
    ConfigError: a share that is no number above 0, or some without one.
  """
  split = [text.rpartition("=") for text in sources]
  if not any(equals for _, equals, _ in split):
    return dict.fromkeys(sources)
  try:
    shares = {name: float(share) for name, _, share in split}
  except ValueError:
    shares = {"": 0.0}
  if "" in shares or not all(0 < share < math.inf for share in shares.values()):
    raise errors.ConfigError(
      "data.questions.sources and its like must be SOURCE=SHARE, each share a "
      f"number above 0, or all without a share, got {', '.join(sources)}"
    )
  return dict(shares)


def named(text: str) -> dict[str, Any]:
  """Returns the fields of a source that a text names.

  A procedural task; a file; or a directory or hub id, which may be followed by
  a colon and the name of a configuration.
  """
  if text in tasks.NAMES or text.startswith("reasoning_gym/"):
    return {"task": text}
  if pathlib.Path(text).is_file() or text.endswith(data_files.SUFFIXES):
    return {"path": text}
  hub, _, name = text.partition(":")
  return {"hub": hub, "name": name or None}


def _of_one(
  source: settings.Source, seen: dict[str, str], needs_answers: Sequence[str]
) -> list[types.Question]:
  if source.path is not None:
    name, found = source.path, data_files.rows_of(pathlib.Path(source.path))
  elif source.hub is not None:
    name, found = source.hub, _hub_rows(source)
  else:
    raise errors.ConfigError(
      "a source needs one of path, hub, task, sources, got none"
    )
  # A file beside a hub id is a copy of it with our own names.
  fields = {} if source.path and source.hub else source.fields
  questions, unclear = [], 0
  for row in _slice(found, name, source):
    question = rows.question(row, fields)
    if needs_answers and not question.answer:
      raise errors.ConfigError(_without_answer(row, fields, needs_answers))
    unclear += rows.may_be_answer(row, question, fields)
    questions.append(_identified(question, row.where, seen))
  if unclear == len(questions):
    raise errors.ConfigError(
      f"{name}: every solution is a bare answer, such as "
      f"{questions[0].solution!r}: say by `fields` whether it is what a reward "
      "reads (fields.answer=solution) or what is learned "
      "(fields.solution=solution)"
    )
  return questions


def _without_answer(
  row: columns.Row, fields: Mapping[str, str], needs_answers: Sequence[str]
) -> str:
  name = fields.get("answer", "answer")
  what = "has no value in" if name in row.values else "lacks"
  return (
    f"{row.where} {what} the field {name!r}, which {', '.join(needs_answers)} "
    f"needs, it has {', '.join(row.values)} (`fields` maps our names to theirs)"
  )


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
    text = question.asked.encode()
    content = name = hashlib.blake2b(text, digest_size=8).hexdigest()
    repeated = 1
    while name in seen:
      repeated += 1
      name = f"{content}-{repeated}"
  seen[name] = where
  return question._replace(id=name)


def _slice(
  found: Iterable[columns.Row], name: str, source: settings.Source
) -> Iterator[columns.Row]:
  stop = None if source.count is None else source.first + source.count
  seen = 0
  for seen, row in enumerate(itertools.islice(found, stop), start=1):
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


def _hub_rows(source: settings.Source) -> Iterator[columns.Row]:
  import datasets

  hub = str(source.hub)
  local = pathlib.Path(hub)
  try:
    if (local / "dataset_dict.json").is_file():
      found = datasets.load_from_disk(hub)[source.split]
    elif (local / "state.json").is_file():
      found = datasets.load_from_disk(hub)
    else:
      found = datasets.load_dataset(
        hub, source.name, split=source.split, revision=source.revision
      )
  except Exception as error:  # the hub's clients raise dozens of types
    reason = " ".join(str(error).split())
    raise errors.ConfigError(
      f"data set {hub} (name {source.name}, split {source.split}) cannot be "
      f"loaded: {type(error).__name__}: {reason}"
    ) from error
  for number, row in enumerate(found):
    yield columns.Row(f"{hub} row {number}", dict(row))


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

  return [_answered(question, solution(question)) for question in questions]


def _answered(question: types.Question, solution: str | None) -> types.Question:
  """The question with another solution, which ends its dialogue, if any."""
  dialogue = question.dialogue
  if dialogue is not None and dialogue.turns:
    turns = dialogue.turns[: dialogue.asked]
    if solution is not None:
      turns = (*turns, {"role": "assistant", "content": solution})
    dialogue = dialogue._replace(turns=turns)
  return question._replace(solution=solution, dialogue=dialogue)
