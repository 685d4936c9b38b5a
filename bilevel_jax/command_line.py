"""What command lines share: bad input is one sentence, and exit code 2."""

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from bilevel_jax import errors

_HOLDS = {
  "at least": lambda value, bound: value >= bound,
  "above": lambda value, bound: value > bound,
  "at most": lambda value, bound: value <= bound,
  "below": lambda value, bound: value < bound,
}
SAMPLING = {
  "temperature": {"at least": 0},
  "top_k": {"at least": 0},
  "top_p": {"above": 0, "at most": 1},
  "min_p": {"at least": 0, "below": 1},
  "seed": {"at least": 0, "below": 2**32},
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


def exit_code(work: Callable[[], object], when_interrupted: str = "") -> int:
  """Returns the exit code: 0, 2 for what the user can mend, 130 interrupted."""
  try:
    work()
  except (errors.ConfigError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f"\n{when_interrupted}".rstrip(), file=sys.stderr)
    return 130
  return 0


def check_bounds(
  options: argparse.Namespace, bounds: Mapping[str, Mapping[str, float]]
) -> None:
  """Returns nothing if the options keep their bounds.

  Args:
    bounds: name of an option, which need not be there or set -> its rules, of
      "at least", "above", "at most" and "below".

  Raises:
    ConfigError: naming the first option that breaks a rule.
  """
  for name, rules in bounds.items():
    value = getattr(options, name, None)
    if value is None:
      continue
    kept = [_HOLDS[rule](value, bound) for rule, bound in rules.items()]
    if not (math.isfinite(value) and all(kept)):
      words = ", ".join(f"{r} {_text(bound)}" for r, bound in rules.items())
      flag = name.replace("_", "-")
      raise errors.ConfigError(f"--{flag} must be {words}, got {value}")


def _text(bound: float) -> str:
  return "2^32" if bound == 2**32 else str(bound)
