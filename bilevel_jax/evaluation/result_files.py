"""What an evaluation leaves: settings.json, scores.json, records/NAME.jsonl."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bilevel_jax import errors, types
from bilevel_jax.data import json_lines
from bilevel_jax.runs import directory
from bilevel_jax.runs.records import write_atomically

# Compared by what they name: questions, prompts, and the hash of the weights.
_SPELLINGS = ("benchmarks", "weights", "revision")


def merged(out: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns settings, with the benchmarks that a directory has answers to.

  Benchmarks may be added to a directory; nothing else may differ.

  Args:
    out: the directory, which need not be there.
    settings: what the scores depend on, with a mapping `benchmarks`.

  Raises:
    ConfigError: it is there, with results for other settings.
  """
  new = json.loads(json.dumps(settings))
  old = earlier_settings(out)
  if old is None:
    return new
  for name, value in new.items():
    if name not in _SPELLINGS and value != old.get(name):
      raise errors.ConfigError(
        f"--out {out} has results for another {name}: {old.get(name)!r}, not "
        f"{value!r}; name another directory"
      )
  for name, asked in new["benchmarks"].items():
    check_same(f"--out {out}", name, old["benchmarks"].get(name, asked), asked)
  return {**old, "benchmarks": {**old["benchmarks"], **new["benchmarks"]}}


def earlier_settings(out: pathlib.Path) -> dict[str, Any] | None:
  """Returns the settings of an earlier evaluation; None: it is not there.

  Raises:
    ConfigError: they cannot be read.
  """
  path = out / "settings.json"
  if not path.is_file():
    return None
  found = json_lines.parse(path.read_bytes(), str(path))
  try:
    for name in found["benchmarks"]:
      found["benchmarks"][name]["sha256"]
  except (ValueError, LookupError, TypeError) as error:
    raise errors.ConfigError(
      f"{path} must hold an evaluation's settings, got: {error}"
    ) from error
  return found


def date_of(*outs: pathlib.Path) -> str | None:
  """Returns the date that the first one with a date rendered prompts with.

  Raises:
    ConfigError: the settings of an evaluation cannot be read.
  """
  dates = ((earlier_settings(out) or {}).get("date") for out in outs)
  return next(filter(None, dates), None)


def check_same(
  where: str,
  name: str,
  there: Mapping[str, Any],
  asked: Mapping[str, Any],
) -> None:
  """Returns if the questions and prompts of a benchmark are the same.

  Args:
    where: the others are, for messages.
    there: what settings say of the others.
    asked: what they say of ours.

  Raises:
    ConfigError: they are others, or put into other prompts.
  """
  if there["sha256"] != asked["sha256"]:
    raise errors.ConfigError(
      f"{where} asked other questions of {name}: {there['questions']} from "
      f"{there['from']}, not {asked['questions']} from {asked['from']}"
    )
  if there.get("prompts", asked["prompts"]) != asked["prompts"]:
    raise errors.ConfigError(
      f"{where} put the questions of {name} into other prompts: the tokenizer "
      "and its chat template must render them to the same text"
    )


@contextlib.contextmanager
def claimed(out: pathlib.Path, settings: Mapping[str, Any]) -> Iterator[None]:
  """Makes the directory, with its settings; keeps other evaluations out.

  Raises:
    ConfigError: it cannot be written, or another evaluation writes there.
  """
  with contextlib.ExitStack() as held:
    try:
      (out / "records").mkdir(parents=True, exist_ok=True)
      held.enter_context(directory.claimed(out, "--out"))
      _write(out / "settings.json", settings)
    except OSError as error:
      raise errors.ConfigError(
        f"--out {out} cannot be written: {error.strerror}"
      ) from error
    yield


def resume_records(
  path: pathlib.Path, questions: Sequence[types.Question]
) -> list[dict[str, Any]]:
  """Returns the records of an earlier call; a line half written is cut off.

  Args:
    questions: that they answer, in this order.

  Raises:
    ConfigError: they answer other questions, or cannot be read.
  """
  records, whole = matching(path, questions)
  if path.is_file():
    with path.open("rb+") as file:
      file.truncate(whole)
  return records


def matching(
  path: pathlib.Path, questions: Sequence[types.Question]
) -> tuple[list[dict[str, Any]], int]:
  """Returns the records of questions, and the bytes of the file's whole lines.

  Args:
    path: of the records; it need not be there.
    questions: that they answer, in this order.

  Raises:
    ConfigError: they answer other questions, or cannot be read.
  """
  found = json_lines.whole(path)
  records = [record for _, record in found][: len(questions)]
  for record, question in zip(records, questions, strict=False):
    if record.get("question") != question.question:
      raise errors.ConfigError(f"{path} holds answers to other questions")
  return records, sum(len(line) for line, _ in found)


def write_scores(
  out: pathlib.Path,
  settings: Mapping[str, Any],
  results: Mapping[str, Any],
  **more: Any,
) -> None:
  """Writes scores.json.

  Args:
    **more: the rest by its name; None is left out.
  """
  found = {name: value for name, value in more.items() if value is not None}
  scores = {"settings": settings, "benchmarks": results, **found}
  _write(out / "scores.json", scores)


def _write(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  write_atomically(path, json.dumps(value, indent=2) + "\n")
