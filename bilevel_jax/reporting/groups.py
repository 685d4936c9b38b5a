"""Runs put into groups that differ by seed alone."""

import dataclasses
import itertools
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

from bilevel_jax import errors, methods
from bilevel_jax.runs.finished import FinishedRun

# Settings that do not make two runs different ways of training.
_OF_NO_INTEREST = (
  "run_dir",
  "resume",
  "seed",
  "steps",
  "checkpoints",
  "logging",
  "evaluation.every",
  "tokenizer.date",
  "training.micro_batch_tokens",
  "training.row_tokens",
  "training.packing",
)
_SHOWN = 3  # settings in a name, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
  """Runs that differ in their seed alone."""

  name: str
  runs: Sequence[FinishedRun]

  def by_seed(self) -> dict[int, FinishedRun]:
    """Returns the runs by their seeds."""
    return {run.seed: run for run in self.runs}


def group(runs: Sequence[FinishedRun]) -> list[Group]:
  """Returns the runs by method and by what else sets them apart.

  A group is named by its method, and by the settings that runs of that method
  do not share, or by a letter where they are many. Settings of other methods do
  not count, nor does what moves no number of a step.

  Raises:
    ConfigError: two runs differ in nothing, not even in the seed.
  """
  kinds: dict[str, list[dict[str, Any]]] = {}  # of each method
  for run in runs:
    known = kinds.setdefault(run.method, [])
    if (kind := _kind(run)) not in known:
      known.append(kind)
  groups: dict[str, list[FinishedRun]] = {}
  for run in runs:
    name = _name(run.method, _kind(run), kinds[run.method])
    groups.setdefault(name, []).append(run)
  for found in groups.values():
    found.sort(key=lambda run: run.seed)
    for one, other in itertools.pairwise(found):
      if one.seed == other.seed:
        raise errors.ConfigError(
          f"{one.path} and {other.path} have the same settings and seed "
          f"{one.seed}: give one of them"
        )
  return [Group(name=name, runs=found) for name, found in groups.items()]


def _kind(run: FinishedRun) -> dict[str, Any]:
  """Returns the settings that the run depends on, but for the seed."""
  others = [name for name in methods.METHODS if name != run.method]
  ignored = (*_OF_NO_INTEREST, *(f"method.{name}" for name in others))
  return {
    name: value
    for name, value in run.settings.items()
    if not any(name == i or name.startswith(f"{i}.") for i in ignored)
  }


def _name(
  method: str, kind: Mapping[str, Any], kinds: Sequence[Mapping[str, Any]]
) -> str:
  """Returns what a group is called among all kinds of its method's runs."""
  differing = {
    name: value
    for name, value in kind.items()
    if any(other.get(name) != value for other in kinds)
  }
  if len(differing) > _SHOWN:
    return f"{method} {string.ascii_uppercase[kinds.index(kind) % 26]}"
  shown = ", ".join(
    f"{name.rsplit('.', 1)[-1]}={_short(value)}"
    for name, value in differing.items()
  )
  return f"{method} ({shown})" if shown else method


def _short(value: Any) -> str:
  return pathlib.Path(value).name if isinstance(value, str) else f"{value}"
