"""Rows that Python gives a run, kept in its directory as files of data."""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from bilevel_jax import config, errors
from bilevel_jax.runs import records

Rows = Iterable[Mapping[str, Any]]
"""A list of rows, or a datasets.Dataset."""

_SOURCES = ("path", "hub", "task", "sources")


def named(
  settings: config.Config | Mapping[str, Any], given: Mapping[str, Rows | None]
) -> config.Config:
  """Returns the settings with the files that the rows are kept in.

  Args:
    settings: parsed, or as `config.parse` takes them.
    given: rows by the name of the source in `data`; None: the settings'.

  Raises:
    ConfigError: a rule that the settings break.
  """
  tree: dict[str, Any]
  if isinstance(settings, config.Config):
    tree = config.to_dict(settings)
  elif isinstance(settings, ml_collections.ConfigDict):
    tree = settings.to_dict()
  else:
    tree = dict(settings)
  data = dict(tree.get("data", {}))
  run_dir = tree.get("run_dir", config.Config().run_dir)
  for name, rows in given.items():
    if rows is not None:
      source = dict(data.get(name) or {})
      for kind in _SOURCES:
        source.pop(kind, None)
      source["path"] = str(_path(run_dir, name))
      data[name] = source
  return config.parse({**tree, "data": data})


def keep(run_dir: str | pathlib.Path, given: Mapping[str, Rows | None]) -> None:
  """Writes the files; a run that is resumed must have the same.

  Raises:
    ConfigError: a row that JSON cannot hold, or other rows than the run's.
  """
  for name, rows in given.items():
    if rows is None:
      continue
    path = _path(run_dir, name)
    content = "".join(
      _line(row, f"{name}[{number}]") for number, row in enumerate(rows)
    )
    if not path.exists():
      records.write_atomically(path, content)
    elif path.read_text("utf-8") != content:
      raise errors.ConfigError(
        f"{path} has other rows than the {name} that were given"
      )


def _line(row: Mapping[str, Any], where: str) -> str:
  try:
    return json.dumps(dict(row)) + "\n"
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(
      f"{where} must be a row that JSON can hold, got: {error}"
    ) from error


def _path(run_dir: str | pathlib.Path, name: str) -> pathlib.Path:
  return pathlib.Path(run_dir).absolute() / f"given_{name}.jsonl"
