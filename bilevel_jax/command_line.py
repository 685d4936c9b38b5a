"""What command lines share: bad input is one sentence, and exit code 2."""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from bilevel_jax import errors, fields

SAMPLING = {
  "temperature": {"at_least": 0},
  "top_k": {"at_least": 0},
  "top_p": {"above": 0, "at_most": 1},
  "min_p": {"at_least": 0, "below": 1},
  "seed": {"at_least": 0, "below": 2**32},
}
"""Bounds of the options that say how tokens are sampled."""


class Parser(argparse.ArgumentParser):
  """A parser whose complaints have no usage before them."""

  def __init__(self, prog: str, description: str | None):
    raw = argparse.RawDescriptionHelpFormatter
    super().__init__(prog, description=description, formatter_class=raw)

  def add(
    self,
    name: str,
    help: str,
    kind: Any = str,
    default: Any = None,
    **more: Any,
  ) -> None:
    """Adds an option, whose help ends with its default."""
    if default is not None:
      help += f" (default {default})"
    self.add_argument(name, help=help, type=kind, default=default, **more)

  def error(self, message: str) -> NoReturn:
    """Exits with the complaint."""
    self.exit(2, f"error: {message}\n")


def show_any_text() -> None:
  """Lets the streams write what their encoding lacks, as escapes."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")


def let_go_of_stdout() -> None:
  """Writes to nowhere from now on, where the reader of a pipe has gone."""
  with contextlib.suppress(OSError, ValueError):  # it may be no file
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_code(work: Callable[[], object], kept: str = "") -> int:
  """Returns the exit code of a command.

  That is 0, 2 for what the user can mend, 130 when interrupted, 141 where the
  reader of its output has gone.

  Args:
    kept: what remains of the work where it was interrupted, or a disk failed.
  """
  show_any_text()
  try:
    work()
    sys.stdout.flush()
  except BrokenPipeError:
    let_go_of_stdout()
    return 141
  except (errors.ConfigError, OSError) as error:
    said = sentence(error)
    if kept and isinstance(error, OSError) and error.errno in errors.OF_DISKS:
      said = f"{said}; {kept}"
    print(f"error: {said}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f"\ninterrupted: {kept}" if kept else "", file=sys.stderr)
    return 130
  return 0


def sentence(error: Exception) -> str:
  """Returns what an error that the user can mend says."""
  if isinstance(error, OSError) and error.filename and error.strerror:
    return f"{error.filename}: {error.strerror}"
  return str(error)


def check_bounds(
  options: argparse.Namespace, bounds: Mapping[str, Mapping[str, float]]
) -> None:
  """Returns nothing if the options keep their bounds.

  Args:
    bounds: name of an option, which need not be there or set -> its rules, of
      `fields.setting`.

  Raises:
    ConfigError: naming the first option that breaks a rule.
  """
  for name, rules in bounds.items():
    value = getattr(options, name, None)
    if value is None:
      continue
    if expected := fields.must_be(value, rules):
      flag = name.replace("_", "-")
      raise errors.ConfigError(f"--{flag} must be {expected}, got {value}")
