"""Files of JSON objects, one a line."""

import json
import pathlib
from typing import Any

from bilevel_jax import errors


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
    ConfigError: it is not JSON, or no object.
  """
  try:
    row = json.loads(line)
  except ValueError as error:
    raise errors.ConfigError(f"{where} is not JSON: {error}") from error
  if not isinstance(row, dict):
    raise errors.ConfigError(f"{where} must be a JSON object, got {kind(row)}")
  return row


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
