"""A run as it was left: its settings, and what it logged."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bilevel_jax import config, errors
from bilevel_jax.data import json_lines
from bilevel_jax.runs import directory, records

# What learning curves are plotted against, and the number that is logged of it.
SPENT = {
  "tokens": "rollout/tokens",
  "flops": "training/update_flops",
  "seconds": "time/step_s",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
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
    """What the run had spent after each step: `steps` and the names of SPENT.

    Steps that logged nothing of it spent nothing, but for operations: NaN where
    no step did, since their number is not known.
    """
    logged = self.steps.values()
    spent = {"steps": np.array(list(self.steps), np.float64)}
    for name, metric in SPENT.items():
      spent[name] = np.cumsum([values.get(metric, 0.0) for values in logged])
    if not any(SPENT["flops"] in values for values in logged):
      spent["flops"] = np.full(len(self.steps), np.nan)
    return spent

  def curve(self, metric: str, against: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns where a metric was logged, as a name of `cost`, and its values.

    Steps at which either is not finite are left out.
    """
    x, y = (
      self.cost[against],
      np.array([values.get(metric, np.nan) for values in self.steps.values()]),
    )
    there = np.isfinite(x) & np.isfinite(y)
    return x[there], y[there]

  def last(self, metric: str) -> float:
    """Returns the last value of a metric; NaN where there is none."""
    return float([np.nan, *self.curve(metric, "steps")[1]][-1])


def read_run(path: str | pathlib.Path) -> FinishedRun:
  """Returns what a run left.

  Raises:
    ConfigError: it has no settings or no metrics.
  """
  files = directory.RunDirectory(path)
  settings = read_settings(path)
  steps = records.by_step(files.metrics)
  if not steps:
    raise errors.ConfigError(f"{path} must hold a run, got no metrics.jsonl")
  answers = records.read_records(files.answers)
  last = max((answer["step"] for answer in answers), default=0)
  return FinishedRun(
    path=files.path,
    settings=settings,
    steps=steps,
    answers={a["question_id"]: a for a in answers if a["step"] == last},
    completions=records.read_records(files.completions),
  )


def read_settings(path: str | pathlib.Path) -> dict[str, Any]:
  """Returns a run's settings by dotted names.

  Raises:
    ConfigError: it has none.
  """
  files = directory.RunDirectory(path)
  try:
    given = json_lines.parse(files.settings.read_bytes(), files.settings.name)
    settings = dict(config.flat(given["config"]))
  except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
    raise errors.ConfigError(
      f"{path} must be a run directory with a config.json, got: {error}"
    ) from None
  # Settings that are younger than the run had their defaults in it.
  return config.defaults() | settings
