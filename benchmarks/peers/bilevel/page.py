"""The page of benchmarks/hypergradient_peers.py, from its JSON."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.peers.bilevel import problems
from bilevel_jax.reporting import comparison

MIB = 2.0**20
_OURS = "bilevel_jax"
_HEAD = """# Results: hypergradients beside other libraries

This page is written by `python benchmarks/hypergradient_peers.py`; no number in
it was typed (`--help` says what is measured, and how the peers are installed).
[Hypergradients](../hypergradients.md#beside-other-libraries) says what follows.

Every library has the same arrays, gradient descent with the same step, the same
number of inner steps and of solver iterations. Processes in turn on {cores} CPU
core(s); medians of {repeats} pairs, and their range. *Time*: above 1 ours is
faster. *Before*: seconds before the first call, compilation on JAX. *MiB*:
resident memory that one call takes, compilation and libraries left out.

{about}
"""
_RIDGE = """
## Ridge regression

Float64, {features} coefficients; the derivative of the held-out loss by one
strength of regularisation, and by one for each coefficient. Errors are relative
to the closed form at the lower optimum; time and memory are of the latter.

"""
_CLEANING = """
## Hyper-cleaning

Softmax regression on scikit-learn's digits in float32: {train} training
examples, half of them with a wrong label, {validation} for validation, the rest
for tests. {outer} steps of Adam on the weights, each after {inner} of b, which
goes on where it was; the baselines' b has as many. Mean over {seeds} seeds with
Student's t 95% interval; AUROC: how often a right label has a larger weight
than a wrong one. Adam's rate is the best of {rates} by test accuracy
on a seed that is not among them, for each row. Time is of one outer step,
memory of two.

"""
_BEHIND = """
## Where another library is ahead

By time: the whole range of the pairs is on its side. By memory: half of ours or
less, and 1 MiB apart.

"""


def write(figures: dict[str, Any]) -> str:
  """Returns the page as markdown."""
  settings = figures["settings"]
  about = [f"- {c['name']}" for c in figures["contestants"]]
  about += [
    f"- {name} was not installed: its rows are left out."
    for name in figures["missing"]
  ]
  text = _HEAD.format(
    cores=settings["cores"],
    repeats=settings["repeats"],
    about="\n".join(about),
  )
  if "ridge" in figures:
    text += _RIDGE.format(features=problems.FEATURES)
    text += _ridge(figures["ridge"])
  if "cleaning" in figures:
    learned = [r for r in figures["cleaning"] if r["estimator"] != "none"]
    text += _CLEANING.format(
      train=problems.TRAIN,
      validation=problems.VALIDATION,
      outer=learned[0]["outer_steps"] if learned else 0,
      inner=learned[0]["inner_steps"] if learned else 0,
      seeds=settings["seeds"],
      rates=", ".join(f"{rate:g}" for rate in settings["rates"]),
    ) + _cleaning(figures["cleaning"])
  return text + _BEHIND + _behind(figures)


def _ridge(rows):
  each = [row for row in rows if row["kind"] == "one each"]
  other = {
    (r["name"].rsplit(", ", 1)[0], r["contestant"]): r["error"]
    for r in rows
    if r["kind"] == "one strength"
  }
  return _table(
    {
      "estimator": _estimator,
      "inner steps": lambda r: str(r["inner_steps"]),
      "library": lambda r: r["contestant"],
      "error, one strength": lambda r: (
        f"{other[r['name'].rsplit(', ', 1)[0], r['contestant']]:.1e}"
      ),
      "error, one each": lambda r: f"{r['error']:.1e}",
      **_COSTS,
    },
    each,
  )


def _cleaning(rows):
  fixed = [row for row in rows if row["estimator"] == "none"]
  learned = [row for row in rows if row["estimator"] != "none"]
  accuracy = lambda r: _interval(r["test_accuracy"], "{:.1%}")
  return (
    _table(
      {"trained on": lambda r: r["name"], "test accuracy": accuracy}, fixed
    )
    + "\n"
    + _table(
      {
        "estimator": _estimator,
        "library": lambda r: r["contestant"],
        "rate": lambda r: f"{r['rate']:g}",
        "test accuracy": accuracy,
        "AUROC": lambda r: _interval(r["auroc"], "{:.3f}"),
        **_COSTS,
      },
      learned,
    )
  )


def _behind(figures):
  lines = []
  for problem in ("ridge", "cleaning"):
    rows = figures.get(problem, [])
    ours = {r["name"]: r for r in rows if r["contestant"] == _OURS}
    for row in rows:
      if row["contestant"] == _OURS:
        continue
      where = (
        f"{problem}, {row['name'].replace(' 0.0', '')}, {row['contestant']}"
      )
      if row["ours_over_it_range"][1] < 1:
        lines.append(f"- {where}: time {row['ours_over_it']:.2f}")
      mine, its = ours[row["name"]].get("bytes"), row.get("bytes")
      if None not in (mine, its) and its * 2 <= mine and mine - its >= MIB:
        lines.append(f"- {where}: {its / MIB:.1f} MiB, ours {mine / MIB:.1f}")
  return "\n".join(lines or ["Nowhere."]) + "\n"


def _estimator(row):
  detail = row["iterations"] or row["penalty"]
  return f"{row['estimator']} {detail:g}" if detail else row["estimator"]


def _interval(values: Sequence[float], form: str) -> str:
  mean, low, high = comparison.over_seeds(values)
  return f"{form.format(mean)} ({form.format(low)} to {form.format(high)})"


def _ratio(row):
  if row["contestant"] == _OURS:
    return ""
  low, high = row["ours_over_it_range"]
  return f"{row['ours_over_it']:.2f} ({low:.2f} to {high:.2f})"


_COSTS: dict[str, Callable[[dict[str, Any]], str]] = {
  "ms": lambda row: f"{1e3 * statistics.median(row['seconds']):.1f}",
  "time": _ratio,
  "before, s": lambda row: f"{row['preparing']:.1f}",
  "MiB": lambda row: (
    "" if row.get("bytes") is None else f"{row['bytes'] / MIB:.1f}"
  ),
}


def _table(columns, rows):
  lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
  lines += [
    "| " + " | ".join(show(row) for show in columns.values()) + " |"
    for row in rows
  ]
  return "\n".join(lines) + "\n"
