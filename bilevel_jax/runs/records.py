"""Files of a run: JSON lines as they are read and cut, and writes that hold."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from bilevel_jax import errors
from bilevel_jax.data import json_lines

Record = Mapping[str, Any]
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the records of a file of JSON lines; [] where there is none.

  A last line that was torn by a kill is left out, and "nan", "inf" and "-inf"
  in metrics are numbers again.

  Raises:
    ConfigError: another line is no JSON object.
  """
  return [
    {name: _number(name, value) for name, value in record.items()}
    for _, record in json_lines.whole(path)
  ]


def by_step(path: pathlib.Path) -> dict[int, dict[str, float]]:
  """Returns everything that a file of metrics has, by steps done.

  Raises:
    ConfigError: as `read_records`.
  """
  steps: dict[int, dict[str, float]] = {}
  for record in read_records(path):
    steps.setdefault(_step(record, path), {}).update(record)
  return dict(sorted(steps.items()))


def drop_after(path: pathlib.Path, step: int) -> None:
  """Drops the lines of later steps, and a torn last line; keeps all else.

  Raises:
    ConfigError: as `read_records`.
  """
  if path.exists():
    lines = json_lines.whole(path)
    kept = [line for line, record in lines if _step(record, path) <= step]
    write_atomically(path, b"".join(kept))


def to_json(record: Record, indent: int | None = None) -> bytes:
  """Returns a record as JSON, whatever its texts are; numbers are finite."""
  text = json.dumps(record, allow_nan=False, ensure_ascii=False, indent=indent)
  # Half a surrogate pair has no UTF-8; backslashed it is JSON's own escape.
  return text.encode("utf-8", errors="backslashreplace")


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file so that it is the old one or the new one, never a part."""
  data = content.encode("utf-8") if isinstance(content, str) else content
  temporary = path.with_name(path.name + ".tmp")
  try:
    with temporary.open("wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    temporary.replace(path)
  except OSError:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise


def _step(record: Record, path: pathlib.Path) -> int:
  step = record.get("step")
  if type(step) is not int:
    raise errors.ConfigError(
      f"each line of {path} must have an integer step, got {step!r}"
    )
  return step


def _number(name: str, value: Any) -> Any:
  # Names of metrics have a slash; those of a completion's texts have none.
  if "/" in name and isinstance(value, str):
    return _NOT_FINITE[value]
  return value
