"""Prints our hypergradients beside other libraries' on two small problems.

Ridge regression in float64, where the hypergradient is known in closed form,
and hyper-cleaning of scikit-learn's digits in float32, half of whose training
labels are wrong (benchmarks/peers/bilevel/problems.py). Every library gets the
same arrays, inner optimiser (gradient descent with one step length), number of
inner steps and of solver iterations; in hyper-cleaning the same outer optimiser
(Adam), whose rate is searched over the same points for each library and
estimator, on seed 0, which is not reported.

  pip install -e '.[peers]'
  pip install --no-deps --ignore-requires-python betty-ml==0.2.1
  taskset -c 1 python benchmarks/hypergradient_peers.py \\
    --json docs/results/hypergradient_peers.json \\
    --page docs/results/hypergradient_peers.md

Peers that are not installed are left out, which is said. Each library is a
process of its own that stays alive; they run in turn (A B A B). Times are of
compiled functions on JAX and of eager ones on torch, as each library means it;
what comes before the first is counted apart. Memory is resident memory that one
call takes, in a fresh process, compilation and libraries left out.

--from FILE makes the page of figures that are there already.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from bilevel_jax import command_line, errors

# A script finds its own directory only.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from benchmarks.peers import contestants, side_by_side
from benchmarks.peers.bilevel import asked, memory, page, problems

KINDS = {"one strength": True, "one each": False}
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
PROBLEMS = ("ridge", "cleaning")


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, 2 for what the user can mend, 130 interrupted."""
  options = _parse(arguments)

  def work() -> None:
    if options.source is not None:
      figures = json.loads(options.source.read_text("utf-8"))
    else:
      figures = side_by_side.figures(options, _benchmark)
    text = page.write(figures)
    if options.page is not None:
      options.page.write_text(text, "utf-8")
    print(text)

  return command_line.exit_code(work)


def _benchmark(
  options: argparse.Namespace, scratch: pathlib.Path
) -> side_by_side.Figures:
  present = [name for name in asked.PACKAGES if importlib.util.find_spec(name)]
  chosen = ["bilevel_jax", *(n for n in options.peers if n in present)]
  missing = [n for n in options.peers if n not in present]
  figures: dict[str, Any] = {
    "settings": {
      "cores": len(os.sched_getaffinity(0)),
      "repeats": options.repeats,
      "seeds": options.repeats,
      "rates": list(RATES),
      "quick": options.quick,
    },
    "missing": [asked.PACKAGES[name] for name in missing],
    "contestants": [],
  }
  plans = [
    contestants.Plan(
      name,
      sys.executable,
      f"benchmarks.peers.bilevel.with_{name}",
      {"contestant": name},
      {},
    )
    for name in chosen
  ]
  if "ridge" in options.problems:
    figures |= _ridge(options, scratch, plans)
  if "cleaning" in options.problems:
    figures |= _cleaning(options, scratch, plans)
  return figures


def ridge_asks(quick: bool) -> list[asked.Ask]:
  """Returns what is asked of ridge regression, but for the data."""
  few = lambda steps: steps // 100 if quick else steps
  rows: list[tuple[str, int, int, float]] = [
    ("unrolled", 100, 0, 0.0),
    ("unrolled", 1000, 0, 0.0),
    ("conjugate gradient", 1000, 10, 0.0),
    ("conjugate gradient", 1000, 40, 0.0),
    ("conjugate gradient", 5000, 200, 0.0),
    ("neumann", 1000, 100, 0.0),
    ("neumann", 1000, 1000, 0.0),
    ("one_step", 1000, 0, 0.0),
    ("penalty", 1000, 0, 0.9),
    ("penalty", 1000, 0, 0.99),
    ("penalty", 5000, 0, 0.999),
  ]
  return [
    asked.Ask(
      name=f"{estimator} {steps} {iterations} {penalty}",
      problem="ridge",
      data="",
      estimator=estimator,
      inner_steps=few(steps),
      iterations=max(iterations > 0, few(iterations)),
      penalty=penalty,
      seconds=0.0 if quick else 0.2,
    )
    for estimator, steps, iterations, penalty in rows
  ]


def cleaning_asks(quick: bool) -> list[asked.Ask]:
  """Returns what is asked of hyper-cleaning, but for the data."""
  rows = (
    ("one_step", 0, 0.0),
    ("unrolled", 0, 0.0),
    ("conjugate gradient", 10, 0.0),
    ("neumann", 10, 0.0),
    ("penalty", 0, 0.9),
  )
  return [
    asked.Ask(
      name=estimator,
      problem="cleaning",
      data="",
      estimator=estimator,
      inner_steps=2 if quick else 20,
      iterations=iterations,
      penalty=penalty,
      outer_steps=3 if quick else 200,
    )
    for estimator, iterations, penalty in rows
  ]


def _able(ask: asked.Ask, contestant: str) -> bool:
  return contestant in asked.ESTIMATORS[ask.estimator]


def _ridge(options, scratch, plans):
  size = {"rows": 30, "features": 6} if options.quick else {}
  asks, data = [], {}
  for kind, scalar in KINDS.items():
    data[kind] = problems.ridge(scalar=scalar, **size)
    file = scratch / f"ridge_{scalar}.npz"
    np.savez(file, **data[kind])
    asks += [
      ask._replace(data=str(file), name=f"{ask.name}, {kind}")
      for ask in _chosen(options, ridge_asks(options.quick))
    ]
  about, turns = side_by_side.take_turns(
    plans, {"float64": True}, asks, options.repeats, able=_able
  )
  rows = []
  for turn in turns:
    kind = turn.asked.name.rsplit(", ", 1)[1]
    want = problems.ridge_hypergradient(data[kind], data[kind]["w"])
    for number in range(len(turn.running)):
      got = np.array(turn.runs[number][-1]["gradient"])
      error = np.linalg.norm(got - want) / np.linalg.norm(want)
      rows.append(
        {
          "kind": kind,
          **_row(turn, number),
          "error": float(error),
        }
      )
  _measure_memory(plans, {"float64": True}, turns, rows)
  return {"contestants": about, "ridge": rows}


def _cleaning(options, scratch, plans):
  if importlib.util.find_spec("sklearn") is None:
    raise errors.ConfigError(
      "hyper-cleaning needs scikit-learn's digits: pip install scikit-learn, "
      "or --problems ridge"
    )
  examples, seeds = problems.digits(), range(1 + options.repeats)
  data = [problems.cleaning(*examples, seed=seed) for seed in seeds]
  for seed, arrays in enumerate(data):
    for name, part in ({"": arrays} | problems.baselines(arrays)).items():
      np.savez(scratch / f"cleaning_{name}{seed}.npz", **part)
  names = [plan.label for plan in plans]
  file = lambda name: str(scratch / f"cleaning_{name}{{seed}}.npz")
  asks = [
    ask._replace(data=file(""))
    for ask in _chosen(options, cleaning_asks(options.quick))
  ]
  set_up = {"float64": False}
  search = [
    ask._replace(rates=dict.fromkeys(names, rate))
    for ask in asks
    for rate in RATES
  ]
  _, tried = side_by_side.take_turns(plans, set_up, search, 0, able=_able)
  found: dict[tuple[str, str], dict[float, float]] = {}
  for turn in tried:
    for contestant, (run,) in zip(turn.running, turn.runs, strict=True):
      scores = found.setdefault((turn.asked.name, str(contestant)), {})
      rate = turn.asked.rates[str(contestant)]
      scores[rate] = problems.test_accuracy(data[0], np.array(run["b"]))
  best = {
    key: max(scores, key=scores.__getitem__) for key, scores in found.items()
  }
  asks = [
    ask._replace(
      rates={name: best[ask.name, name] for name in names if _able(ask, name)}
    )
    for ask in asks
  ]
  fixed = [
    cleaning_asks(options.quick)[0]._replace(
      name=name,
      data=file(name),
      estimator="none",
      rates=dict.fromkeys(names, 0.0),
    )
    for name in problems.baselines(data[0])
  ]
  about, turns = side_by_side.take_turns(
    plans, set_up, [*fixed, *asks], options.repeats, able=_able
  )
  rows = []
  for turn in turns:
    for number, contestant in enumerate(turn.running):
      runs = turn.runs[number][1:]
      row = {
        **_row(turn, number),
        "rate": turn.asked.rates[str(contestant)],
        "test_accuracy": [
          problems.test_accuracy(arrays, np.array(run["b"]))
          for arrays, run in zip(data[1:], runs, strict=True)
        ],
      }
      if turn.asked.estimator != "none":
        row["search"] = found[turn.asked.name, str(contestant)]
        row["auroc"] = [
          problems.auroc(arrays, np.array(run["w"]))
          for arrays, run in zip(data[1:], runs, strict=True)
        ]
      rows.append(row)
  _measure_memory(plans, set_up, turns, rows)
  return {"contestants": about, "cleaning": rows}


def _chosen(options, asks):
  return [ask for ask in asks if options.only in ask.name]


def _row(turn, number):
  row, ask = turn.row(number), turn.asked
  return {
    "name": ask.name,
    "estimator": ask.estimator,
    "inner_steps": ask.inner_steps,
    "iterations": ask.iterations,
    "penalty": ask.penalty,
    "outer_steps": ask.outer_steps,
    **row,
    "preparing": turn.runs[number][0]["preparing"],
  }


def _measure_memory(plans, set_up, turns, rows):
  """Adds what a call takes in a process of its own that hands memory back."""
  plans = {
    plan.label: plan._replace(environment=memory.RETURNED_AT_ONCE)
    for plan in plans
  }
  asks = {turn.asked.name: turn.asked for turn in turns}
  for row in rows:
    if row["estimator"] == "none" or row.get("kind") == "one strength":
      continue  # the page does not show it
    ask = asks[row["name"]]._replace(outer_steps=2, memory=True)
    plan = plans[row["contestant"]]
    _, (turn,) = side_by_side.take_turns([plan], set_up, [ask], 0)
    ((run,),) = turn.runs
    row |= {"bytes": run["bytes"], "process_bytes": run["process_bytes"]}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add(
    "--peers",
    type=contestants.choices(*asked.PACKAGES),
    metavar="LIST",
    default=list(asked.PACKAGES),
    help=f"of {', '.join(asked.PACKAGES)} (default all)",
  )
  add(
    "--problems",
    type=contestants.choices(*PROBLEMS),
    metavar="LIST",
    default=list(PROBLEMS),
    help=f"of {', '.join(PROBLEMS)} (default both)",
  )
  add("--only", default="", metavar="TEXT", help="estimators named like this")
  add(
    "--repeats",
    type=contestants.count,
    metavar="N",
    default=5,
    help="timed rounds, and seeds of hyper-cleaning (default 5)",
  )
  add("--quick", action="store_true", help="tiny sizes: does it run?")
  add("--json", type=pathlib.Path, metavar="FILE", help="write figures here")
  add("--page", type=pathlib.Path, metavar="FILE", help="write the page here")
  add(
    "--from",
    dest="source",
    type=pathlib.Path,
    metavar="FILE",
    help="figures of an earlier run: measure nothing",
  )
  return parser.parse_args(arguments)


if __name__ == "__main__":
  sys.exit(main())
