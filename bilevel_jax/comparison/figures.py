"""The numbers of a comparison, for JSON, a page or a document."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bilevel_jax.comparison import runs as runs_lib
from bilevel_jax.evaluation import paired, scoring

ACCURACY = "evaluation/accuracy"
PHASES = {
  "sampling": "time/rollout_s",
  "rewards": "time/reward_s",
  "update": "time/update_s",
}


def over_seeds(
  values: Sequence[float], confidence: float = 0.95
) -> scoring.Estimate:
  """Returns the mean of a number over seeds with Student's t interval.

  Args:
    values: one of each seed; the bounds of a single one are NaN.
    confidence: share of intervals that hold the truth.
  """
  known = np.asarray(values, np.float64)
  mean = float(known.mean())
  if len(known) < 2:
    return scoring.Estimate(mean, math.nan, math.nan)
  from scipy import stats

  quantile = float(stats.t.ppf((1 + confidence) / 2, len(known) - 1))
  half = quantile * float(known.std(ddof=1)) / math.sqrt(len(known))
  return scoring.Estimate(mean, mean - half, mean + half)


def summarise(
  groups: Sequence[runs_lib.Group],
  reference: str,
  target: float | None = None,
) -> dict[str, Any]:
  """Returns every number of the comparison, as JSON.

  Args:
    groups: of runs that differ by seed.
    reference: name of the group that the others are compared with.
    target: accuracy whose cost is told; default: half way from the accuracy
      at the start to that of the best group.
  """
  by_name = {group.name: group for group in groups}
  last = [mean for mean in map(_mean_last, groups) if math.isfinite(mean)]
  best = max(last, default=math.nan)
  if target is None:
    starts = [
      run.curve(ACCURACY, "steps")[1][0]
      for group in groups
      for run in group.runs
      if len(run.curve(ACCURACY, "steps")[1])
    ]
    start = float(np.mean(starts)) if starts else math.nan
    target = (start + best) / 2
  others = [name for name in by_name if name != reference]
  differences = {
    name: difference(by_name[name], by_name[reference]) for name in others
  }
  adjusted = paired.holm([found.p for found, _ in differences.values()])
  rows = {}
  for group in groups:
    rows[group.name] = {
      "seeds": [run.seed for run in group.runs],
      "runs": [str(run.path) for run in group.runs],
      **_final(group),
      "to_target": to_target(group, target),
      "cost": cost(group),
    }
  for (name, (found, by)), p in zip(differences.items(), adjusted, strict=True):
    rows[name]["reference_minus_this"] = {
      "difference": [found.value, found.low, found.high],
      "p": found.p,
      "p_holm": p,
      "paired_by": by,
    }
  return {"reference": reference, "target": target, "groups": rows}


def difference(
  group: runs_lib.Group, reference: runs_lib.Group
) -> tuple[paired.Difference, str]:
  """Returns how much higher the reference's accuracy is, and what was paired.

  Seeds and questions are paired where both groups have records of the same
  questions, seeds alone where they have not.

  Args:
    group: the one it is compared with.
  """
  ours, theirs = reference.by_seed(), group.by_seed()
  seeds = [seed for seed in ours if seed in theirs]
  if not seeds:
    nothing = paired.Difference(*(math.nan,) * 4)
    return nothing, "nothing: no seed in common"
  asked = [set(run.answers) for run in (*ours.values(), *theirs.values())]
  questions = sorted(set.intersection(*asked))
  if questions:
    a, b = (
      np.array(
        [[of[s].answers[q]["correct"] for q in questions] for s in seeds],
        np.float64,
      )
      for of in (theirs, ours)
    )
    by = f"{len(questions)} questions, {_seeds(seeds)}"
  else:
    a, b = (
      np.array([[of[seed].last(ACCURACY)] for seed in seeds])
      for of in (theirs, ours)
    )
    by = _seeds(seeds)
  return paired.crossed(a, b), by


def to_target(group: runs_lib.Group, target: float) -> dict[str, Any]:
  """Returns what it cost to come to an accuracy, over the seeds that did.

  The first evaluation at or above the target counts, so the figures are as
  fine as the evaluations are frequent.
  """
  found = []
  for run in group.runs:
    steps, accuracies = run.curve(ACCURACY, "steps")
    there = steps[accuracies >= target]
    if len(there):
      at = list(run.cost["steps"]).index(there[0])
      found.append({name: spent[at] for name, spent in run.cost.items()})
  return {
    "reached": len(found),
    "of": len(group.runs),
    "median": {
      name: float(np.median([spent[name] for spent in found]))
      for name in runs_lib.AGAINST
    }
    if found
    else None,
  }


def cost(group: runs_lib.Group) -> dict[str, Any]:
  """Returns what runs of a group cost, as means over seeds.

  `seconds` are totals by phase; `other` is what a step takes beside them.
  The first step, which compiles, is one phase of its own.
  """
  each = [_seconds(run) for run in group.runs]
  total = lambda run, name: float(run.cost[name][-1])
  return {
    "seconds": {
      phase: float(np.mean([seconds[phase] for seconds in each]))
      for phase in each[0]
    },
    "step_s": float(np.mean([_median_step(run) for run in group.runs])),
    **{
      name: float(np.mean([total(run, name) for run in group.runs]))
      for name in runs_lib.AGAINST
      if name != "seconds"
    },
  }


def band(
  group: runs_lib.Group, metric: str, against: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
  """Returns (x, mean, low, high) of a metric over a group's seeds.

  The runs' curves are put on one axis by straight lines between their points,
  as far as all of them reach. The bounds are Student's t; NaN with one seed.
  """
  curves = [run.curve(metric, against) for run in group.runs]
  curves = [(x, y) for x, y in curves if len(x)]
  if not curves:
    return None
  first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
  grid = np.unique(np.concatenate([x for x, _ in curves]))
  grid = grid[(grid >= first) & (grid <= last)]
  if not len(grid):
    return None
  values = np.array([np.interp(grid, x, y) for x, y in curves])
  estimates = np.array([over_seeds(column) for column in values.T])
  return grid, *estimates.T


def _final(group: runs_lib.Group) -> dict[str, Any]:
  """The last accuracy: over seeds, or over questions where there is one."""
  values = [run.last(ACCURACY) for run in group.runs]
  if len(values) > 1:
    return {"accuracy": list(over_seeds(values)), "interval_over": "seeds"}
  if answers := group.runs[0].answers:
    right = np.array([answer["correct"] for answer in answers.values()])
    return {
      "accuracy": list(scoring.accuracy(right)),
      "interval_over": "questions",
    }
  bounds = [group.runs[0].last(f"{ACCURACY}_{end}") for end in ("low", "high")]
  return {"accuracy": [values[0], *bounds], "interval_over": "questions"}


def _mean_last(group: runs_lib.Group) -> float:
  return float(np.mean([run.last(ACCURACY) for run in group.runs]))


def _median_step(run: runs_lib.Run) -> float:
  times = [v["time/step_s"] for v in run.steps.values() if "time/step_s" in v]
  return float(np.median(times[1:] or times or [math.nan]))


def _seconds(run: runs_lib.Run) -> dict[str, float]:
  rows = [v for step, v in run.steps.items() if step > 0 and "time/step_s" in v]
  first, rest = rows[:1], rows[1:]
  seconds = {
    phase: float(sum(row.get(name, 0.0) for row in rest))
    for phase, name in PHASES.items()
  }
  whole = float(sum(row["time/step_s"] for row in rest))
  return {
    **seconds,
    "other": whole - sum(seconds.values()),
    "first step": float(sum(row["time/step_s"] for row in first)),
  }


def _seeds(seeds: Sequence[int]) -> str:
  return f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"
