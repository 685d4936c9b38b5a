"""What a run learned of its demonstrations, by the group that each is of."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from bilevel_jax.runs import records


def weights(run: pathlib.Path, good: str | None) -> dict[str, Any] | None:
  """Returns means by group of the demonstrations that a run has seen.

  Args:
    run: its directory.
    good: the group whose weights should be the largest; None: there is none.

  Returns:
    Of the final weights and of their means over the run, the mean of each group
    and how often a good one has the larger weight than another (AUROC), where
    there are both; how many were seen, and how often at most. None: it learned
    nothing.
  """
  path = run / "demonstrations.jsonl"
  rows = [row for row in records.read_records(path) if row["times_seen"]]
  if not rows:
    return None
  found: dict[str, Any] = {
    "seen": len(rows),
    "most_seen": max(row["times_seen"] for row in rows),
    "groups": {},
    "auroc": {},
  }
  for name in ("weight", "mean_weight"):
    of_group: dict[str, list[float]] = {}
    for row in rows:
      of_group.setdefault(str(row.get("group")), []).append(row[name])
    for group, values in sorted(of_group.items()):
      found["groups"].setdefault(group, {})[name] = float(np.mean(values))
    best = of_group.pop(good, []) if good else []
    others = [value for values in of_group.values() for value in values]
    if best and others:
      found["auroc"][name] = auroc(best, others)
  return found


def auroc(good: Sequence[float], spoiled: Sequence[float]) -> float:
  """How often a good one has the larger weight, ties counted as a half."""
  pairs = len(good) * len(spoiled)
  return float(stats.mannwhitneyu(good, spoiled).statistic / pairs)
