"""The numbers of a comparison, for JSON, a page or a document."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bilevel_jax.evaluation import paired, scoring
from bilevel_jax.reporting.groups import Group

ACCURACY = "evaluation/accuracy"
PHASES = {
  "sampling": "time/rollout_s",
  "rewards": "time/reward_s",
  "update": "time/update_s",
}
_STEP = "time/step_s"


def over_seeds(values: Sequence[float]) -> scoring.Estimate:
  """Returns the mean of a number over seeds with Student's t 95% interval.

  Args:
    values: one of each seed; the bounds of a single one are NaN.
  """
  known = np.asarray(values, np.float64)
  mean = float(known.mean())
  if len(known) < 2:
    return scoring.Estimate(mean, math.nan, math.nan)
  from scipy import stats

  quantile = float(stats.t.ppf(0.975, len(known) - 1))
  half = quantile * float(known.std(ddof=1)) / math.sqrt(len(known))
  return scoring.Estimate(mean, mean - half, mean + half)


def compare_groups(
  groups: Sequence[Group], reference: str, target: float | None = None
) -> dict[str, Any]:
  """Returns every number of the comparison, as JSON.

  Args:
    reference: name of the group that the others are compared with.
    target: accuracy whose cost is told; default: half way from the accuracy
      at the start to that of the best group.
  """
  if target is None:
    target = _half_way(groups)
  rows = {
    group.name: {
      "seeds": [run.seed for run in group.runs],
      "runs": [str(run.path) for run in group.runs],
      **_final(group),
      "to_target": _to_target(group, target),
      "cost": _cost(group),
    }
    for group in groups
  }
  by_name = {group.name: group for group in groups}
  found = {
    name: _difference(group, by_name[reference])
    for name, group in by_name.items()
    if name != reference
  }
  adjusted = with_holm({name: differs for name, (differs, _) in found.items()})
  for name, (_, by) in found.items():
    rows[name]["reference_minus_this"] = adjusted[name] | {"paired_by": by}
  return {"reference": reference, "target": target, "groups": rows}


def with_holm(
  differences: Mapping[str, paired.Difference],
) -> dict[str, dict[str, Any]]:
  """Returns differences that are read together, as JSON."""
  adjusted = paired.holm([found.p for found in differences.values()])
  return {
    name: {"difference": list(found[:3]), "p": found.p, "p_holm": p}
    for (name, found), p in zip(differences.items(), adjusted, strict=True)
  }


def seed_band(
  group: Group, metric: str, against: str
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


def _half_way(groups: Sequence[Group]) -> float:
  runs = [run for group in groups for run in group.runs]
  starts = [a for run in runs for a in run.curve(ACCURACY, "steps")[1][:1]]
  start = _mean(starts) if starts else math.nan
  last = [_mean(run.last(ACCURACY) for run in group.runs) for group in groups]
  best = max(filter(math.isfinite, last), default=math.nan)
  return (start + best) / 2


def _difference(
  group: Group, reference: Group
) -> tuple[paired.Difference, str]:
  """Returns how much higher the reference's accuracy is, and what was paired.

  Seeds and questions are paired where both groups have records of the same
  questions, seeds alone where they have not.
  """
  ours, theirs = reference.by_seed(), group.by_seed()
  seeds = [seed for seed in ours if seed in theirs]
  if not seeds:
    nothing = paired.Difference(*(math.nan,) * 4)
    return nothing, "nothing: no seed in common"
  by = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"
  asked = [set(run.answers) for run in (*ours.values(), *theirs.values())]
  questions = sorted(set.intersection(*asked))
  if questions:
    by = f"{len(questions)} questions, {by}"
    of_run = lambda run: [run.answers[q]["correct"] for q in questions]
  else:
    of_run = lambda run: [run.last(ACCURACY)]
  a, b = (
    np.array([of_run(of[seed]) for seed in seeds], np.float64)
    for of in (theirs, ours)
  )
  return paired.crossed(a, b), by


def _to_target(group: Group, target: float) -> dict[str, Any]:
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
  median = {
    name: float(np.median([spent[name] for spent in found]))
    for name in (found[0] if found else ())
  }
  reached, of = len(found), len(group.runs)
  return {"reached": reached, "of": of, "median": median or None}


def _cost(group: Group) -> dict[str, Any]:
  """Returns what runs of a group cost, as means over seeds.

  `seconds` are totals by phase; `other` is what a step takes beside them.
  The first step, which compiles, is one phase of its own.
  """
  seconds, steps, spent = [], [], []
  for run in group.runs:
    timed = [v for step, v in run.steps.items() if step and _STEP in v]
    total = lambda name, rows: float(sum(row.get(name, 0.0) for row in rows))
    phases = {phase: total(name, timed[1:]) for phase, name in PHASES.items()}
    phases["other"] = total(_STEP, timed[1:]) - sum(phases.values())
    seconds.append(phases | {"first step": total(_STEP, timed[:1])})
    steps.append(np.median([v[_STEP] for v in timed[1:] or timed] or [np.nan]))
    spent.append({n: x[-1] for n, x in run.cost.items() if n != "seconds"})
  mean = lambda rows: {n: _mean(row[n] for row in rows) for n in rows[0]}
  return {"seconds": mean(seconds), "step_s": _mean(steps), **mean(spent)}


def _final(group: Group) -> dict[str, Any]:
  """The last accuracy: over seeds, or over questions where there is one."""
  values = [run.last(ACCURACY) for run in group.runs]
  if len(values) > 1:
    return {"accuracy": list(over_seeds(values)), "interval_over": "seeds"}
  run = group.runs[0]
  if run.answers:
    right = np.array([answer["correct"] for answer in run.answers.values()])
    found = list(scoring.accuracy(right))
  else:
    ends = (f"{ACCURACY}_low", f"{ACCURACY}_high")
    found = [*values, *map(run.last, ends)]
  return {"accuracy": found, "interval_over": "questions"}


def _mean(values: Iterable[float]) -> float:
  return float(np.mean(list(values)))
