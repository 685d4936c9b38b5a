"""Runs a study: methods by seeds, under one budget, and writes what came of it.

    python experiments/study.py experiments/studies/arithmetic.py

STUDY.py has a function `get_study(quick)`. First the policies are made, then
each method's learning rates are searched on validation questions, then every
seed is trained and tested. A study that was stopped or killed goes on with the
same command, and on another machine with the results of the first (`--known`);
what is done is not done again, and what is not done yet is named
in the results. Writes OUT/results.json (every number), OUT/results.md (made
from it) and a page of curves for each regime, OUT/REGIME/comparison.html.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import rich.console

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bilevel_jax import command_line, compile_cache, errors, own_code, train
from bilevel_jax.reporting import charts, comparison, comparison_page
from bilevel_jax.reporting.groups import Group
from bilevel_jax.runs import records
from bilevel_jax.runs.finished import read_run
from experiments.engine import document, numbers, plan, work

_BOUNDS = {
  "jobs": {"at_least": 1, "at_most": 256},
  "seeds": {"at_least": 1},
}


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, 1 for a study that was stopped, 2 bad input."""
  options = _parse(arguments)
  try:
    command_line.check_bounds(options, _BOUNDS)
    study = _load(options.study, options.quick)
    regimes = _chosen(options.regimes, study.regimes, "--regimes")
    arms = _chosen(options.arms, _arms(study), "--arms")
  except (errors.ConfigError, OSError) as error:
    print(f"error: {command_line.sentence(error)}", file=sys.stderr)
    return 2
  out = options.out or pathlib.Path("runs") / study.name
  console = rich.console.Console(highlight=False)
  started = time.monotonic()

  def report(path: str) -> None:
    console.print(f"{time.monotonic() - started:7.0f} s  {path}")

  code = 0
  try:
    if options.known is not None:
      work.take_over(out, options.known)
    try:
      for name in regimes if not options.report_only else ():
        _regime(out, study, name, arms, options, report)
    except (train.TrainingStopped, KeyboardInterrupt):
      print("stopped: the same command goes on from here", file=sys.stderr)
      code = 1
    _write(out, study, options)
  except (errors.ConfigError, OSError) as error:
    print(f"error: {command_line.sentence(error)}", file=sys.stderr)
    return 2
  console.print(f"results: {out / 'results.md'}")
  return code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = command_line.Parser("python experiments/study.py", __doc__)
  add = parser.add_argument
  add("study", type=pathlib.Path, metavar="STUDY.py")
  add("--out", type=pathlib.Path, help="default: runs/NAME")
  add("--quick", action="store_true", help="the study's short form")
  add("--jobs", type=int, default=1, help="runs side by side (default 1)")
  add("--regimes", help="these alone, with semicolons between")
  add("--arms", help="these alone, with semicolons between")
  add("--seeds", type=int, help="the first so many alone")
  add(
    "--known",
    type=pathlib.Path,
    metavar="JSON",
    help="results.json of another session, whose runs are not done again",
  )
  add("--report-only", action="store_true", help="train nothing")
  add("--json", type=pathlib.Path, help="another place for results.json")
  add("--document", type=pathlib.Path, help="another place for results.md")
  add(
    "--summary",
    type=pathlib.Path,
    help="a page of what was found alone, with the study's figure beside it",
  )
  return parser.parse_args(arguments)


def _load(path: pathlib.Path, quick: bool) -> plan.Study:
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if spec is None or spec.loader is None or not path.is_file():
    raise errors.ConfigError(f"STUDY.py must be a Python file, got {path}")
  module = importlib.util.module_from_spec(spec)
  with own_code.told(f"{path} cannot be used:"):
    spec.loader.exec_module(module)
    if not callable(get_study := getattr(module, "get_study", None)):
      raise errors.ConfigError(f"{path} must have a function get_study(quick)")
    study = get_study(quick=quick)
  if not isinstance(study, plan.Study):
    raise errors.ConfigError(
      f"get_study of {path} must return an experiments.engine.plan.Study, got "
      f"{type(study).__name__}"
    )
  plan.check(study)
  return study


def _chosen(asked: str | None, known: Any, flag: str) -> list[str]:
  if asked is None:
    return list(known)
  # Arms' names may have a comma in them.
  names = [name.strip() for name in asked.split(";")]
  for name in names:
    if name not in known:
      raise errors.ConfigError(f"{flag} takes {'; '.join(known)}, got {name!r}")
  return names


def _arms(study: plan.Study) -> list[str]:
  return list(dict.fromkeys(a for r in study.regimes.values() for a in r.arms))


def _regime(
  out: pathlib.Path,
  study: plan.Study,
  name: str,
  arms: list[str],
  options: argparse.Namespace,
  report: Any,
) -> None:
  """Does what is left of a regime."""
  perform = lambda jobs: work.perform_all(
    out, study, jobs, side_by_side=options.jobs, report=report
  )
  regime = study.regimes[name]
  for job in plan.stages(study, regime):
    perform([job])
  source = regime.searched_in or name
  needed = {regime.arms[a].tuned_as or a for a in arms if a in regime.arms}
  needed |= {
    source for arm in needed for source, _ in regime.arms[arm].takes.values()
  }
  while True:
    chosen = _points(_searches(out, study, source))
    left = [
      job
      for arm, jobs in plan.tuning(study, source, chosen).items()
      if arm in needed
      for job in jobs
      if not work.done(out, job)
    ]
    if not left:
      break
    perform(left)
  jobs = plan.final(study, name, chosen)
  # All methods of a seed before the next seed: what is there can be compared.
  wanted = [
    (seed, job)
    for arm in arms
    for place, (seed, job) in enumerate(jobs.get(arm, {}).items())
    if options.seeds is None or place < options.seeds
  ]
  ordered = [job for _, job in sorted(wanted, key=lambda pair: pair[0])]
  perform([job for job in ordered if job.after is None])
  perform([job for job in ordered if job.after is not None])


def _points(searches: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Returns the point that each finished search chose."""
  return {arm: found["chosen"] for arm, found in searches.items()}


def _searches(
  out: pathlib.Path, study: plan.Study, name: str
) -> dict[str, dict[str, Any]]:
  """Returns what each finished search found, by arm."""
  searches: dict[str, dict[str, Any]] = {}
  while True:
    found = {
      arm: work.results(out, jobs)
      for arm, jobs in plan.tuning(study, name, _points(searches)).items()
      if arm not in searches
    }
    ended = {arm: r for arm, r in found.items() if None not in r}
    if not ended:
      return searches
    for arm, found in ended.items():
      points = study.regimes[name].arms[arm].search
      searches[arm] = {
        "chosen": dict(points[numbers.best_point(found)]),
        "points": [
          {
            "changes": dict(point),
            "validation": result["validation"],
            "settings": result["settings"],
          }
          for point, result in zip(points, found, strict=True)
        ],
      }


def _write(
  out: pathlib.Path, study: plan.Study, options: argparse.Namespace
) -> None:
  """Writes results.json, results.md and the pages, of what is done."""
  regimes, done, wanted, seconds = {}, 0, 0, 0.0
  for name, regime in study.regimes.items():
    source = regime.searched_in or name
    searches = _searches(out, study, source)
    chosen = _points(searches)
    jobs = plan.final(study, name, chosen)
    searched = plan.tuning(study, name, chosen) if source == name else {}
    found = {
      arm: dict(
        zip(seeds, work.results(out, list(seeds.values())), strict=True)
      )
      for arm, seeds in jobs.items()
      if _decided(study.regimes[source], regime, arm, searches)
    }
    regimes[name] = numbers.summarise(study, name, searches, found)
    every = [
      *plan.stages(study, regime),
      *(job for searches in searched.values() for job in searches),
      *(job for seeds in jobs.values() for job in seeds.values()),
    ]
    results = [r for r in work.results(out, every) if r is not None]
    done, wanted = done + len(results), wanted + len(every)
    seconds += sum(r["spent"]["seconds"] for r in results if "spent" in r)
    _page(out, study, name, jobs)
  whole = {
    "name": study.name,
    "about": study.about,
    "command": f"python experiments/study.py {options.study}"
    + " --quick" * options.quick,
    "json": str(options.json or out / "results.json"),
    "hardware": f"{jax.devices()[0].device_kind}, {platform.machine()}",
    "hours": seconds / 3600,
    "versions": ", ".join(
      f"{package} {importlib.metadata.version(package)}"
      for package in ("bilevel_jax", "jax", "optax")
    ),
    "runs_done": done,
    "runs_wanted": wanted,
    "sampled_tokens": study.settings.training.max_sampled_tokens,
    "steps": study.settings.steps,
    "validation_questions": study.settings.data.evaluation.count,
    "tables": {name: table.about for name, table in study.tables.items()},
    "findings": study.findings,
    "tests": list(study.tests),
    "references": study.references(),
    "regimes": regimes,
  }
  whole = comparison_page.finite(whole)
  apart = options.summary
  pages: dict[pathlib.Path, str | bytes] = {
    options.json or out / "results.json": json.dumps(whole, indent=1) + "\n",
    options.document or out / "results.md": document.render(whole, bool(apart)),
  }
  if apart is not None:
    picture = None
    if study.picture is not None:
      picture = apart.with_suffix(".png")
      pages[picture] = charts.png(study.picture(whole), dpi=160)
    details = options.document or out / "results.md"
    pages[apart] = document.summary(
      whole,
      os.path.relpath(details, apart.parent),
      picture and picture.name,
    )
  for path, page in pages.items():
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_atomically(path, page)


def _decided(
  source: plan.Regime, regime: plan.Regime, arm: str, searches: dict[str, Any]
) -> bool:
  """Returns whether it is known with what settings the arm is to run.

  Args:
    source: the regime whose searches choose.
  """
  given = regime.arms[arm]
  searched = given.tuned_as or arm
  needed = {taken for taken, _ in given.takes.values()}
  if searched in source.arms and len(source.arms[searched].search) > 1:
    needed.add(searched)
  return needed <= set(searches)


def _page(out: pathlib.Path, study: plan.Study, name: str, jobs: Any) -> None:
  arms = study.regimes[name].arms
  groups = [
    Group(name=arm, runs=[read_run(out / job.path) for job in finished])
    for arm, seeds in jobs.items()
    if arms[arm].table == plan.MAIN
    and arms[arm].changes is not None
    and (
      finished := [
        job
        for job in seeds.values()
        if work.done(out, job) and (out / job.path / "metrics.jsonl").exists()
      ]
    )
  ]
  if len(groups) < 2:
    return
  names = [group.name for group in groups]
  reference = study.reference if study.reference in names else names[0]
  summary = comparison.compare_groups(groups, reference)
  comparison_page.write_comparison(
    out / name, groups, summary, f"{study.name}, regime {name}"
  )


if __name__ == "__main__":
  compile_cache.enable()
  sys.exit(main())
