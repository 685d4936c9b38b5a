"""Settings from files of JSON or YAML."""

import json
import pathlib
from typing import Any

import ml_collections

from bilevel_jax import errors
from bilevel_jax.config import parsing


def from_file(path: str) -> ml_collections.ConfigDict:
  """Returns the defaults with what a file of JSON or YAML changes.

  Args:
    path: of a mapping of settings; a run's config.json is one.

  Raises:
    ConfigError: it cannot be read, or names what is no setting.
  """
  tree = _read(pathlib.Path(path))
  if isinstance(tree, dict) and "config" in tree and "versions" in tree:
    tree = {k: v for k, v in tree["config"].items() if k != "resume"}
  if not isinstance(tree, dict):
    raise errors.ConfigError(f"{path} must hold a mapping of settings")
  settings = parsing.default_config()
  with settings.unlocked(), settings.ignore_type():
    _change(settings, tree, (), path)
  return settings


def _read(path: pathlib.Path) -> Any:
  try:
    text = path.read_text("utf-8")
    if path.suffix in (".yaml", ".yml"):
      import yaml

      return yaml.safe_load(text)
    return json.loads(text)
  except Exception as error:  # YAML has errors of its own
    said = " ".join(str(error).split())
    raise errors.ConfigError(f"{path} cannot be read: {said}") from error


def _change(
  group: Any, tree: dict[str, Any], above: tuple[str, ...], path: str
) -> None:
  for name, value in tree.items():
    try:
      parsing.check_name([*above, name])
    except errors.ConfigError as error:
      raise errors.ConfigError(f"{path}: {error}") from None
    inner = group.get(name)
    if isinstance(inner, ml_collections.ConfigDict) and isinstance(value, dict):
      _change(inner, value, (*above, name), path)
    elif isinstance(value, list):
      group[name] = tuple(value)
    else:
      group[name] = value
