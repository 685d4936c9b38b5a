"""Rows of JSONL, JSON, CSV and parquet files, told apart by their content."""

import csv
import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import IO

from bilevel_jax import errors
from bilevel_jax.data import columns, json_lines

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet")
_LONGEST_FIELD = 2**24  # characters of a field of CSV


def rows_of(path: pathlib.Path) -> Iterator[columns.Row]:
  """Yields the rows of a file.

  JSONL has an object on each line, JSON a list of them, or an object whose
  only list it is. CSV and TSV (by the name) have a line of names; an empty
  field is a missing value. Any but parquet may be compressed with gzip.

  Raises:
    ConfigError: a file that is not there, cannot be read, or is no such.
  """
  if not path.is_file():
    raise errors.ConfigError(f"data file {path} does not exist")
  # The first bytes, not the name, say how a file is stored.
  try:
    with path.open("rb") as start:
      first = start.read(4)
    if first == b"PAR1":
      yield from _parquet(path)
      return
    opener = gzip.open if first[:2] == b"\x1f\x8b" else open
    # A byte-order mark is no text, and only a newline ends a line.
    with opener(path, "rt", encoding="utf-8-sig", newline="\n") as lines:
      name = path.name.removesuffix(".gz")
      if name.endswith((".csv", ".tsv")):
        yield from _csv(path, lines, "," if name.endswith(".csv") else "\t")
      elif name.endswith(".json") and _is_one_value(lines):
        yield from _json(path, lines)
      else:
        yield from _json_lines(path, lines)
  except UnicodeDecodeError as error:
    raise errors.ConfigError(f"{path} is not UTF-8 text: {error}") from error
  except (OSError, EOFError, zlib.error) as error:
    raise errors.ConfigError(f"{path} cannot be read: {error}") from error


def _json_lines(path: pathlib.Path, lines: IO[str]) -> Iterator[columns.Row]:
  for number, line in enumerate(lines, start=1):
    if line.strip():
      where = f"{path} line {number}"
      yield columns.Row(where, json_lines.parse(line, where))


def _is_one_value(lines: IO[str]) -> bool:
  """Whether a file is one value of JSON, and not one a line."""
  line = lines.readline()
  try:
    return not isinstance(json.loads(line), dict) or not any(lines)
  except (ValueError, RecursionError):
    return True
  finally:
    lines.seek(0)


def _json(path: pathlib.Path, text: IO[str]) -> Iterator[columns.Row]:
  try:
    content = json.load(text)
  except (ValueError, RecursionError) as error:
    raise errors.ConfigError(f"{path} is not JSON: {error}") from error
  if isinstance(content, dict):
    lists = [value for value in content.values() if isinstance(value, list)]
    content = lists[0] if len(lists) == 1 and _are_rows(lists[0]) else [content]
  if not isinstance(content, list):
    raise errors.ConfigError(
      f"{path} must be a list of objects, got {json_lines.kind(content)}"
    )
  for number, row in enumerate(content, start=1):
    where = f"{path} row {number}"
    json_lines.check_object(row, where)
    yield columns.Row(where, row)


def _are_rows(values: list) -> bool:
  return (
    bool(values)
    and all(isinstance(value, dict) for value in values)
    and not any("role" in value or "from" in value for value in values)
  )


def _csv(
  path: pathlib.Path, lines: IO[str], delimiter: str
) -> Iterator[columns.Row]:
  csv.field_size_limit(_LONGEST_FIELD)
  reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
  try:
    for row in reader:
      where = f"{path} line {reader.line_num}"
      if None in row or None in row.values():
        raise errors.ConfigError(
          f"{where} must have {len(reader.fieldnames or ())} fields, as its "
          "first line has"
        )
      yield columns.Row(where, {k: v or None for k, v in row.items()})
  except csv.Error as error:
    raise errors.ConfigError(
      f"{path} line {reader.line_num} is not CSV: {error}"
    ) from error


def _parquet(path: pathlib.Path) -> Iterator[columns.Row]:
  import pyarrow
  from pyarrow import parquet

  try:
    number = 0
    with parquet.ParquetFile(path) as file:
      for batch in file.iter_batches():
        for row in batch.to_pylist():
          number += 1
          yield columns.Row(f"{path} row {number}", row)
  except pyarrow.ArrowException as error:
    raise errors.ConfigError(f"{path} cannot be read: {error}") from error
