"""Run directories as they were left, put into groups that differ by seed."""

import dataclasses
import itertools
import json
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bilevel_jax import config, errors, methods
from bilevel_jax.training import metrics, run_directory

# Settings that do not make two runs different ways of training.
_OF_NO_INTEREST = (
  "run_dir",
  "resume",
  "seed",
  "steps",
  "checkpoints",
  "logging",
  "evaluation.every",
  "training.micro_batch_tokens",
  "training.row_tokens",
  "training.packing",
)
_SHOWN = 3  # settings in a name, at most
# What the learning curves are drawn against: heading, unit, logged number.
AGAINST = {
  "steps": ("Steps", "steps", None),
  "tokens": ("Sampled tokens", "tokens", "rollout/tokens"),
  "flops": ("Updates' operations", "FLOPs", "training/update_flops"),
  "seconds": ("Training time", "s", "time/step_s"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """What a run left."""

  path: pathlib.Path
  settings: Mapping[str, Any]  # by dotted names
  steps: Mapping[int, Mapping[str, float]]  # everything logged at each
  answers: Mapping[str, Mapping[str, Any]]  # to held-out questions, the last
  completions: Sequence[Mapping[str, Any]]

  @property
  def seed(self) -> int:
    """The run's seed."""
    return self.settings["seed"]

  @property
  def method(self) -> str:
    """The run's method."""
    return self.settings["method.name"]

  @property
  def cost(self) -> Mapping[str, np.ndarray]:
    """By the names of AGAINST, what the run had spent after each step.

    Steps that logged nothing of it spent nothing, but for operations: NaN where
    no step did, since their number is not known.
    """
    steps = np.array(list(self.steps))
    spent = {"steps": steps.astype(np.float64)}
    for name, (_, _, logged) in AGAINST.items():
      if logged is not None:
        each = [values.get(logged, 0.0) for values in self.steps.values()]
        spent[name] = np.cumsum(each)
    if not any("training/update_flops" in v for v in self.steps.values()):
      spent["flops"] = np.full(len(steps), np.nan)
    return spent

  def curve(self, metric: str, against: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns where a metric was logged, and its values there.

    Args:
      metric: name of a logged number.
    """
    found = np.array(
      [values.get(metric, np.nan) for values in self.steps.values()]
    )
    there = np.isfinite(found) & np.isfinite(self.cost[against])
    return self.cost[against][there], found[there]

  def last(self, metric: str) -> float:
    """Returns the last value of a metric; NaN where there is none."""
    values = self.curve(metric, "steps")[1]
    return float(values[-1]) if len(values) else float("nan")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
  """Runs that differ in their seed alone."""

  name: str
  runs: Sequence[Run]

  def by_seed(self) -> dict[int, Run]:
    """Returns the runs by their seeds."""
    return {run.seed: run for run in self.runs}


def read(path: str | pathlib.Path) -> Run:
  """Returns what a run left.

  Raises:
    ConfigError: it has no settings or no metrics.
  """
  files = run_directory.RunDirectory(pathlib.Path(path))
  settings = read_settings(path)
  steps: dict[int, dict[str, float]] = {}
  for line in metrics.read(files.metrics):
    steps.setdefault(line["step"], {}).update(line)
  if not steps:
    raise errors.ConfigError(f"{path} must hold a run, got no metrics.jsonl")
  answers = metrics.read(files.answers)
  last = max((line["step"] for line in answers), default=0)
  return Run(
    path=files.path,
    settings=settings,
    steps=dict(sorted(steps.items())),
    answers={a["question_id"]: a for a in answers if a["step"] == last},
    completions=metrics.read(files.completions),
  )


def read_settings(path: str | pathlib.Path) -> dict[str, Any]:
  """Returns a run's settings by dotted names.

  Raises:
    ConfigError: it has none.
  """
  files = run_directory.RunDirectory(pathlib.Path(path))
  try:
    given = json.loads(files.settings.read_text(encoding="utf-8"))["config"]
  except (OSError, ValueError, KeyError) as error:
    raise errors.ConfigError(
      f"{path} must be a run directory with a config.json, got: {error}"
    ) from None
  # Settings that are younger than the run had their defaults in it.
  return config.defaults() | dict(config.flat(given))


def group(runs: Sequence[Run]) -> list[Group]:
  """Returns the runs by method and by what else sets them apart.

  A group is named by its method, and by the settings that runs of that method
  do not share, or by a letter where they are many. Settings of other methods do
  not count, nor does what moves no number of a step.

  Raises:
    ConfigError: two runs differ in nothing, not even in the seed.
  """
  kept = {id(run): _telling(run) for run in runs}
  names: dict[int, str] = {}
  for run in runs:
    alike = [kept[id(other)] for other in runs if other.method == run.method]
    differing = {
      name: value
      for name, value in kept[id(run)].items()
      if any(other.get(name) != value for other in alike)
    }
    names[id(run)] = _name(run.method, differing, alike)
  groups = []
  for name in dict.fromkeys(names.values()):
    found = sorted(
      (run for run in runs if names[id(run)] == name), key=lambda run: run.seed
    )
    for one, other in itertools.pairwise(found):
      if one.seed == other.seed:
        raise errors.ConfigError(
          f"{one.path} and {other.path} have the same settings and seed "
          f"{one.seed}: give one of them"
        )
    groups.append(Group(name=name, runs=found))
  return groups


def _telling(run: Run) -> dict[str, Any]:
  """Returns the settings that the run depends on, but for the seed."""
  others = [name for name in methods.METHODS if name != run.method]
  ignored = (*_OF_NO_INTEREST, *(f"method.{name}" for name in others))
  return {
    name: value
    for name, value in run.settings.items()
    if not any(name == i or name.startswith(f"{i}.") for i in ignored)
  }


def _name(
  method: str, differing: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]
) -> str:
  if len(differing) > _SHOWN:
    kinds = [dict(kind) for kind in dict.fromkeys(map(_frozen, alike))]
    own = [
      all(kind.get(name) == repr(value) for name, value in differing.items())
      for kind in kinds
    ]
    return f"{method} {string.ascii_uppercase[own.index(True) % 26]}"
  shown = ", ".join(
    f"{name.rsplit('.', 1)[-1]}={_short(value)}"
    for name, value in differing.items()
  )
  return f"{method} ({shown})" if shown else method


def _frozen(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
  return tuple((name, repr(value)) for name, value in settings.items())


def _short(value: Any) -> str:
  return pathlib.Path(value).name if isinstance(value, str) else f"{value}"
