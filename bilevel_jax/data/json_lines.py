"""Files of JSON objects, one a line."""

import json
import pathlib
from typing import Any

from bilevel_jax import errors

_MOST_LEVELS = 100  # what recurses over a row has stack for more


def whole(path: pathlib.Path) -> list[tuple[bytes, dict[str, Any]]]:
  """Returns the lines of a file with their objects; [] where there is none.

  A last line that a kill has torn, so that it has no end, is left out.

  Raises:
    ConfigError: another line is no JSON object.
  """
  data = path.read_bytes() if path.is_file() else b""
  lines = data.split(b"\n")[:-1]  # only a newline ends a line
  return [
    (line + b"\n", parse(line, f"{path} line {number}"))
    for number, line in enumerate(lines, start=1)
  ]


def parse(line: str | bytes, where: str) -> dict[str, Any]:
  """Returns the object that a line holds.

  Raises:
    ConfigError: it is not JSON, no object, or nested too deeply.
  """
  try:
    row = json.loads(line)
  except ValueError as error:
    raise errors.ConfigError(f"{where} is not JSON: {error}") from error
  except RecursionError:
    raise _too_deep(where) from None
  check_object(row, where)
  return row


def check_object(row: Any, where: str) -> None:
  """Returns nothing if a value is an object that can be gone through.

  Raises:
    ConfigError: it is no object, or nested too deeply.
  """
  if isinstance(row, (dict, list)) and _is_deep(row):
    raise _too_deep(where)
  if not isinstance(row, dict):
    raise errors.ConfigError(f"{where} must be a JSON object, got {kind(row)}")


def _too_deep(where: str) -> errors.ConfigError:
  return errors.ConfigError(
    f"{where} must be nested at most {_MOST_LEVELS} levels deep"
  )


def _is_deep(row: dict | list) -> bool:
  level = [row]
  for _ in range(_MOST_LEVELS):
    level = [
      inner
      for outer in level
      for inner in (outer.values() if isinstance(outer, dict) else outer)
      if isinstance(inner, (dict, list))
    ]
    if not level:
      return False
  return True


def check_text(text: str, where: str) -> None:
  """Returns nothing if a string is text, which half a surrogate pair is not.

  Raises:
    ConfigError: it is none.
  """
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise errors.ConfigError(
      f"{where} must be text, got half of a surrogate pair, "
      f"{text[error.start]!a}, at character {error.start}"
    ) from None


def kind(value: Any) -> str:
  """Returns what a value of JSON is called."""
  names = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    type(None): "null",
  }
  return names.get(type(value), f"a {type(value).__name__}")
