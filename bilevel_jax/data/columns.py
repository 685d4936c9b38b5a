"""A row's values by our names for its columns."""

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from bilevel_jax import errors
from bilevel_jax.data import json_lines, messages

FIELDS = (
  "id", "question", "answer", "solution", "prompt", "completion", "messages",
  "system", "tools", "chat_template_kwargs", "weight",
)  # fmt: skip
"""Ours, which `fields` maps to theirs."""

_BETWEEN = {"answer": ",", "solution": "\n\n"}  # where there are several
# The ways of saying what is asked, and the columns that say it.
FORMS = {
  "question": ("question", "problem"),
  "prompt": ("prompt",),
  "messages": ("messages", "conversations"),
  "instruction": ("instruction",),
}


class Row(NamedTuple):
  """A row of a file."""

  where: str  # it stands, for messages
  values: Mapping[str, Any]


class Reader:
  """A row's values by our names."""

  def __init__(self, row: Row, fields: Mapping[str, str]):
    self.row, self._fields = row, fields
    # A field that the map gives to one of ours is not taken for another one
    # by its name: GSM8K's `answer` is our `solution`.
    self._taken = set(fields.values())
    self._read: set[str] = set()

  def column(self, name: str) -> str | None:
    """The column that has one of our values; None: none has it."""
    if name in self._fields:
      return self._fields[name]
    if name in self._taken or _is_missing(self.row.values.get(name)):
      return None
    return name

  def value(self, name: str) -> Any:
    """One of our values; None: the row has none."""
    column = self.column(name)
    if column is None:
      return None
    value = _at(self.row.values, column)
    if _is_missing(value):
      raise self.missing(column)
    self._read.add(column)
    return value

  def text(self, name: str) -> str | None:
    """The same as text."""
    value = self.value(name)
    if value is None:
      return None
    return self.as_text(value, str(self.column(name)), _BETWEEN.get(name))

  def as_text(self, value: Any, column: str, between: str | None = None) -> str:
    """A value as text, several joined."""
    if between is not None and are_texts(value):
      value = between.join(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
      raise self.refused(column, "text or a number", value)
    json_lines.check_text(str(value), f"{self.row.where}: field {column!r}")
    return str(value)

  def number(self, name: str) -> float | None:
    """The same as a number of at least 0."""
    value = self.value(name)
    if isinstance(value, str):
      with contextlib.suppress(ValueError):
        value = float(value)
    if value is None:
      return None
    return messages.weight(
      value, f"{self.row.where}: field {self.column(name)!r}"
    )

  def json(self, name: str, kind: type, words: str) -> Any:
    """The same as a list or mapping, or as the text of one."""
    value = self.value(name)
    if isinstance(value, str):
      with contextlib.suppress(ValueError):
        value = json.loads(value)
    if value is None or isinstance(value, kind):
      return value
    raise self.refused(str(self.column(name)), words, value)

  def messages(self, name: str) -> list[dict[str, Any]] | None:
    """The same as messages; None: it is a text, or not there."""
    value = self.value(name)
    if not isinstance(value, (list, tuple)):
      return None
    column = str(self.column(name))
    return [
      messages.parsed(message, f"{self.row.where}: {column}[{number}]")
      for number, message in enumerate(value)
    ]

  def form(self) -> str:
    """Returns which of the FORMS the row has.

    Raises:
      ConfigError: none of them, or several.
    """
    found = {
      form: column
      for form, columns in FORMS.items()
      for column in columns
      if self.column(column) is not None
    }
    if self.column("chosen") and self.column("rejected"):
      found.setdefault("prompt", "chosen")
      found.pop("messages", None)
    mapped = [form for form in found if form in self._fields]
    if len(mapped) == 1:
      return mapped[0]
    if set(found) == {"prompt", "messages"} and self._repeats_prompt():
      return "messages"
    if len(found) > 1:
      readings = " or ".join(
        f"as {form} (column {column})" for form, column in found.items()
      )
      first = next(iter(found))
      raise errors.ConfigError(
        f"{self.row.where} can be read {readings}: say which one is meant by "
        f"`fields`, such as fields.{first}={found[first]}"
      )
    if not found:
      raise self.missing("question")
    return next(iter(found))

  def _repeats_prompt(self) -> bool:
    """Whether the prompt is the first message once more (UltraChat's)."""
    values = self.row.values
    turns = self.messages("messages") or []
    first = next((t["content"] for t in turns if t["role"] == "user"), None)
    return first is not None and values.get("prompt") == first

  def ground_truth(self) -> str | None:
    """verl's answer."""
    value = _at(self.row.values, "reward_model.ground_truth")
    if value is None or "reward_model.ground_truth" in self._taken:
      return None
    if isinstance(value, Mapping) or (
      isinstance(value, (list, tuple)) and not are_texts(value)
    ):
      return json.dumps(value)
    return self.as_text(value, "reward_model.ground_truth", ",")

  def rest(self) -> dict[str, Any]:
    """What nothing has read, and what `fields` names, for verifiers."""
    unread = self.row.values.keys() - (self._read - self._taken)
    rest = {k: v for k, v in self.row.values.items() if k in unread}
    nested = rest.pop("meta", None)
    if isinstance(nested, Mapping):
      rest |= nested
    elif nested is not None:
      rest["meta"] = nested
    for name in FIELDS:
      if name in rest and _is_missing(rest[name]):
        del rest[name]
    return rest

  def missing(self, name: str) -> errors.ConfigError:
    """What to raise where a column, or its value, is not there."""
    where, values = self.row
    if name in values:
      return errors.ConfigError(f"{where} has no value in the field {name!r}")
    return errors.ConfigError(
      f"{where} lacks the field {name!r}, it has {', '.join(values) or 'none'} "
      "(`fields` maps our names to theirs)"
    )

  def refused(self, column: str, words: str, value: Any) -> errors.ConfigError:
    """What to raise where a value is of another kind."""
    return errors.ConfigError(
      f"{self.row.where}: field {column!r} must be {words}, got "
      f"{json_lines.kind(value)}"
    )


def _at(values: Mapping[str, Any], path: str) -> Any:
  """The value at a dotted path, where no column has that very name."""
  if path in values:
    return values[path]
  found: Any = values
  for name in path.split("."):
    if not isinstance(found, Mapping) or name not in found:
      return None
    found = found[name]
  return found


def _is_missing(value: Any) -> bool:
  return value is None or (
    isinstance(value, float) and not math.isfinite(value)
  )


def are_texts(value: Any) -> bool:
  """Returns whether a value is a list of texts, and not empty."""
  return (
    isinstance(value, (list, tuple))
    and bool(value)
    and all(isinstance(text, str) for text in value)
  )
