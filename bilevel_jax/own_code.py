"""Functions of the user's own, which settings name by a dotted path."""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from bilevel_jax import errors


def function(
  path: str, setting: str, known: Iterable[str], hint: str = ""
) -> Callable[..., Any]:
  """Returns the function that a setting names.

  Args:
    setting: the setting's name, for messages.
    known: names that the setting takes besides paths, for messages.
    hint: ends the message of a module that cannot be imported.

  Raises:
    ConfigError: no such path, module or function.
  """
  module, name = split(path)
  if not module or not name:
    raise errors.ConfigError(
      f"{setting} takes {', '.join(known)}, or a dotted path to a "
      f"function, got {path!r}"
    )
  if module == "__main__":
    raise errors.ConfigError(
      f"{setting}: {path!r} must be in a module that another process can "
      "import, got __main__"
    )
  found = getattr(imported(module, path, setting, hint), name, None)
  if not callable(found):
    what = "has no" if found is None else "cannot call"
    raise errors.ConfigError(
      f"{setting}: {path!r}: module {module} {what} {name}"
    )
  return found


def split(path: str) -> tuple[str, str]:
  """Returns the module and the name in it that a path has."""
  module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
  return module, name


def imported(module: str, path: str, setting: str, hint: str = "") -> Any:
  """Returns a module, imported.

  Args:
    path: what the setting says, for messages.
    setting: the setting's name, for messages.

  Raises:
    ConfigError: it cannot be imported.
  """
  try:
    return importlib.import_module(module)
  except Exception as error:  # a user's module may raise anything
    raise errors.ConfigError(
      f"{setting}: {path!r} cannot be imported: "
      f"{type(error).__name__}: {error}{hint}"
    ) from error
