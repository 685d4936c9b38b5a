"""Every number of a study, as one JSON, from what its jobs found."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bilevel_jax.evaluation import paired
from bilevel_jax.reporting import comparison
from experiments.engine import plan

PASS_RATES = (0.0, 0.25, 0.75, 1.0)
"""Of the base, by which questions are told apart: 0, and up to each other."""

Results = Mapping[str, Mapping[int, Any]]  # arm -> seed -> what a job found


def best_point(found: list[Any]) -> int:
  """Returns which point of a search is best on the validation questions."""
  return int(np.argmax([result["validation"] for result in found]))


def summarise(
  study: plan.Study, name: str, searches: Mapping[str, Any], results: Results
) -> dict[str, Any]:
  """Returns the numbers of a regime.

  Args:
    searches: by arm, what its search found.
    results: of the jobs that are done; None for those that are not.
  """
  regime = study.regimes[name]
  arms: dict[str, Any] = {}
  for arm, given in regime.arms.items():
    done = {s: r for s, r in results.get(arm, {}).items() if r is not None}
    arms[arm] = {
      "changes": dict(given.changes) if given.changes is not None else None,
      "table": given.table,
      "search": searches.get(arm),
      "tuned_as": given.tuned_as,
      "seeds": sorted(done),
      "seeds_wanted": len(study.seeds(given)),
      "runs": {str(seed): found for seed, found in done.items()},
      "tests": {test: _accuracy(done, test) for test in study.tests}
      if done
      else None,
      "cost": _cost(done),
    }
    if study.oracle and done:
      arms[arm]["of_the_way"] = {
        test: _of_the_way(study, results, done, test) for test in study.tests
      }
    if (base := results.get(study.base or "")) and done:
      arms[arm]["by_pass_rate"] = {
        test: _by_pass_rate(next(iter(base.values())), done, test, study)
        for test in study.tests
      }
  references = study.references()
  for test in study.tests:
    for table, reference in references.items():
      theirs = results.get(reference, {})
      compared = {
        arm: _against(results[arm], theirs, test, regime.arms[arm])
        for arm, given in arms.items()
        if given["table"] == table and arm != reference and given["runs"]
      }
      for arm, found in comparison.with_holm(compared).items():
        arms[arm].setdefault("reference_minus_this", {})[test] = found
  return {"about": regime.about, "stages": list(regime.stages), "arms": arms}


def _accuracy(done: Mapping[int, Any], test: str) -> list[float]:
  """The mean with its interval: over seeds, or with one over questions."""
  each = [result["tests"][test]["accuracy"] for result in done.values()]
  if len(each) == 1:
    return each[0]
  return list(comparison.over_seeds([value for value, _, _ in each]))


def _of_the_way(
  study: plan.Study, results: Results, done: Mapping[int, Any], test: str
) -> list[float]:
  """Returns, for each seed, how far it is from the reference to the oracle."""
  of = lambda found: found["tests"][test]["accuracy"][0]
  start, end = (
    results.get(study.reference, {}),
    results.get(study.oracle or "", {}),
  )
  return [
    (of(found) - of(start[seed])) / (of(end[seed]) - of(start[seed]))
    for seed, found in done.items()
    if start.get(seed) and end.get(seed) and of(end[seed]) != of(start[seed])
  ]


def _by_pass_rate(
  base: Any, done: Mapping[int, Any], test: str, study: plan.Study
) -> list[dict[str, Any]] | None:
  """Returns accuracy and tokens of an answer by what the base can do.

  Bins of the share of the base's sampled answers to a question that are right.
  """
  if base is None:
    return None
  counts = base["tests"][test]["right_of_samples"].split()
  rates = np.array([int(n) for n in counts]) / study.pass_rate_samples
  found = [result["tests"][test] for result in done.values()]
  right = np.mean([[int(bit) for bit in f["right"]] for f in found], axis=0)
  lengths = np.mean([[int(n) for n in f["lengths"].split()] for f in found], 0)
  bins = [(-1.0, 0.0), *itertools.pairwise(PASS_RATES)]
  inside = [(low, high, (rates > low) & (rates <= high)) for low, high in bins]
  return [
    {
      "above": max(low, 0.0),
      "up_to": high,
      "questions": int(rows.sum()),
      "accuracy": float(right[rows].mean()),
      "tokens": float(lengths[rows].mean()),
    }
    for low, high, rows in inside
    if rows.any()
  ]


def _against(
  runs: Mapping[int, Any],
  reference: Mapping[int, Any],
  test: str,
  arm: plan.Arm,
) -> paired.Difference:
  """Returns reference less arm, over the seeds of both and all questions."""
  bits = lambda found: [int(bit) for bit in found["tests"][test]["right"]]
  ours = {seed: bits(r) for seed, r in reference.items() if r is not None}
  theirs = {seed: bits(r) for seed, r in runs.items() if r is not None}
  if arm.changes is None:  # it is the same for every seed
    theirs = dict.fromkeys(ours, next(iter(theirs.values())))
  seeds = [seed for seed in ours if seed in theirs]
  if not seeds:
    return paired.Difference(*(math.nan,) * 4)
  return paired.crossed(
    np.array([theirs[seed] for seed in seeds]),
    np.array([ours[seed] for seed in seeds]),
  )


def _cost(done: Mapping[int, Any]) -> dict[str, float] | None:
  trained = [result for result in done.values() if "spent" in result]
  if not trained:
    return None
  mean = lambda name: float(np.mean([r["spent"][name] for r in trained]))
  return {
    **{name: mean(name) for name in trained[0]["spent"]},
    **{
      name: float(np.mean([r[kind][name] for r in trained]))
      for kind in ("means", "last")
      for name in trained[0][kind]
    },
  }
