"""Functions of the user's own, which settings name by a dotted path."""

import contextlib
import hashlib
import importlib
import importlib.util
import io
import pathlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bilevel_jax import errors

# Where no code of the user's own is.
_OTHERS = (
  "<frozen",
  str(pathlib.Path(__file__).parent),
  *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")),
)


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


def file_hash(path: str) -> str:
  """Returns a hash of the file that a path's module is in; "" without one."""
  spec = importlib.util.find_spec(split(path)[0])
  if spec is None or spec.origin is None or not spec.has_location:
    return ""
  return hashlib.sha256(pathlib.Path(spec.origin).read_bytes()).hexdigest()


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
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      return importlib.import_module(module)
  except (Exception, SystemExit) as error:  # it may do anything
    # A module that reads the command line complains of what is not its own.
    said = io.StringIO() if isinstance(error, SystemExit) else said
    raise errors.ConfigError(
      f"{setting}: {path!r} cannot be imported: {what_raised(error)}{hint}"
    ) from error
  finally:
    sys.stderr.write(said.getvalue())


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
  """Makes one sentence of what the user's own code raises inside.

  Args:
    what: the sentence up to what was raised.

  Raises:
    ConfigError: it raised something, or ended the program.
  """
  try:
    yield
  except errors.ConfigError:
    raise
  except (Exception, SystemExit) as error:  # it may do anything
    inside = error.__traceback__ and error.__traceback__.tb_next
    raised = what_raised(error.with_traceback(inside))
    raise errors.ConfigError(f"{what} {raised}") from error


def what_raised(error: BaseException) -> str:
  """Returns an error that the user's own code raised, and the line of it.

  Args:
    error: caught where that code was called.
  """
  words = " ".join(str(error).split())
  if isinstance(error, SystemExit):
    words = f"it must not end the program, got exit code {error.code}"
  if isinstance(error, SyntaxError) and error.filename:
    line = f"{error.filename}, line {error.lineno}: "
    return f"{line}{type(error).__name__}: {error.msg}"
  frames = traceback.extract_tb(error.__traceback__)[1:]
  own = [f for f in frames if not f.filename.startswith(_OTHERS)]
  line = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
  quoted = isinstance(error, KeyError) and words[:1] == words[-1:] == "'"
  return f"{line}{type(error).__name__}: {words[1:-1] if quoted else words}"
