"""Does BRIDGE find the spoiled demonstrations, and does accuracy gain by it?

    python experiments/spoiled_demonstrations.py

Runs configs/spoiled_demonstrations.py with seeds 1 to 5: BRIDGE with a weight
for each demonstration, one weighted loss (`mixed`), the same on the good
demonstrations alone (the oracle), RL alone (`grpo`); and two harder cases:
2,000 demonstrations of which a run sees each at most once, and steps of 16
rollouts. A finished run leaves result.json and is not run again: a study that
was stopped goes on with the same command. Then the page is written, and beside
it a line of JSON for each run.

Hardware: 2 CPU cores. Cost: about half a minute a run, 75 runs.
Expected: docs/results/spoiled_demonstrations.md. With guesses BRIDGE comes all
the way from `mixed` to the oracle, with slips a quarter of it, and clean
demonstrations cost nothing that five seeds show.
"""

import argparse
import contextlib
import json
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bilevel_jax import compile_cache, config, train
from bilevel_jax.data import corpora
from bilevel_jax.reporting import comparison, text
from bilevel_jax.runs import records
from configs import spoiled_demonstrations

SEEDS = (1, 2, 3, 4, 5)
RESULT = "result.json"  # written last: the run is done
_SPARSE = {"data.prompts_per_step": 2}
_ONCE = {
  "data.demonstrations.task_options.guess_share": 0.5,
  "data.demonstrations.count": 2000,
}
# Part -> arm -> kind of demonstrations, changes, whether the good ones alone.
PARTS: Mapping[str, Mapping[str, tuple[str, Mapping[str, Any], bool]]] = {
  "guesses": {
    "mixed": ("guesses", {"method.name": "mixed"}, False),
    "bridge": ("guesses", {}, False),
    "oracle": ("guesses", {"method.name": "mixed"}, True),
    "grpo": ("guesses", {"method.name": "grpo"}, False),
  },
  "slips": {
    "mixed": ("slips", {"method.name": "mixed"}, False),
    "bridge": ("slips", {}, False),
  },
  "clean": {
    "mixed": ("clean", {"method.name": "mixed"}, False),
    "bridge": ("clean", {}, False),
  },
  "once": {
    "mixed": ("guesses", {**_ONCE, "method.name": "mixed"}, False),
    "oracle": ("guesses", {**_ONCE, "method.name": "mixed"}, True),
    **{
      f"bridge, {per}": (
        "guesses",
        {**_ONCE, "method.bridge.per": (per,)},
        False,
      )
      for per in ("features", "group", "demonstration")
    },
  },
  "sparse": {
    "bridge, guesses": ("guesses", _SPARSE, False),
    "bridge, slips": ("slips", _SPARSE, False),
  },
}
# Whose oracle a part has: the good ones of `slips` are those of `guesses`.
_ORACLES = {"guesses": "guesses", "slips": "guesses", "once": "once"}


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs what is left, writes the page, returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add(
    "--out",
    type=pathlib.Path,
    default=pathlib.Path("runs/spoiled_demonstrations_study"),
  )
  add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
  add("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
  add("--document", type=pathlib.Path, help="default: OUT/results.md")
  options = parser.parse_args(arguments)
  options.out.mkdir(parents=True, exist_ok=True)
  for seed in options.seeds:  # all of one before the next: it can be compared
    for part in options.parts:
      for arm in PARTS[part]:
        file = _directory(options.out, part, arm, seed) / RESULT
        if not file.exists():
          found = json.dumps(_run(options.out, part, arm, seed))
          records.write_atomically(file, found + "\n")
          print(found, flush=True)
  done = [
    file.read_text("utf-8")
    for part, arms in PARTS.items()
    for arm in arms
    for seed in SEEDS
    if (file := _directory(options.out, part, arm, seed) / RESULT).exists()
  ]
  document = options.document or options.out / "results.md"
  records.write_atomically(document.with_suffix(".jsonl"), "".join(done))
  records.write_atomically(document, page([json.loads(line) for line in done]))
  print(document)
  return 0


def _directory(
  out: pathlib.Path, part: str, arm: str, seed: int
) -> pathlib.Path:
  return out / part / arm.replace(", ", "-") / str(seed)


def settings(out: pathlib.Path, part: str, arm: str, seed: int) -> Any:
  """Returns the settings of a run, which may need a file in `out`."""
  kind, changes, good_alone = PARTS[part][arm]
  c = spoiled_demonstrations.get_config(kind)
  c.seed = seed
  c.run_dir = str(_directory(out, part, arm, seed))
  c.update_from_flattened_dict(dict(changes))
  c.checkpoints.export = False
  source = c.data.demonstrations
  source.first = source.count * seed  # other ones for each seed
  if good_alone:
    every = corpora.load(config.parse(c).data.demonstrations)
    good = [q._asdict() for q in every if q.meta["kind"] == "worked"]
    file = out / f"good-{part}-{seed}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in good))
    source.task, source.path = None, str(file)
    source.first, source.count = 0, len(good)
  return c


def _run(out: pathlib.Path, part: str, arm: str, seed: int) -> dict[str, Any]:
  """Trains, and returns what the run found."""
  c = settings(out, part, arm, seed)
  directory = pathlib.Path(c.run_dir)
  shutil.rmtree(directory, ignore_errors=True)  # was stopped on its way
  directory.parent.mkdir(parents=True, exist_ok=True)
  with (
    directory.with_suffix(".log").open("w", encoding="utf-8") as shown,
    contextlib.redirect_stdout(shown),
  ):
    train.run(config.parse(c))
  logged = records.read_records(directory / "metrics.jsonl")
  return {
    "part": part,
    "arm": arm,
    "seed": seed,
    "accuracy": logged[-1]["evaluation/accuracy"],
    "steps": logged[-1]["step"],
    "steps_with_signal": sum(
      record.get("rl/groups_without_advantage", 1) < 1 for record in logged
    ),
    **_weights(directory / "demonstrations.jsonl"),
  }


def _weights(path: pathlib.Path) -> dict[str, Any]:
  """What was learned of the demonstrations that the run has seen."""
  rows = [row for row in records.read_records(path) if row["times_seen"]]
  if not rows:
    return {}
  found: dict[str, Any] = {
    "seen": len(rows),
    "most_seen": max(row["times_seen"] for row in rows),
    "kinds": {},
  }
  for name in ("weight", "mean_weight"):
    of_kind: dict[str, list[float]] = {}
    for row in rows:
      of_kind.setdefault(row["group"], []).append(row[name])
    for kind, values in sorted(of_kind.items()):
      found["kinds"].setdefault(kind, {})[name] = float(np.mean(values))
    good = of_kind.pop("worked", [])
    spoiled = [value for values in of_kind.values() for value in values]
    if good and spoiled:
      found[f"auroc_of_{name}"] = auroc(good, spoiled)
  return found


def auroc(good: Sequence[float], spoiled: Sequence[float]) -> float:
  """How often a good one has the larger weight, ties counted as a half."""
  pairs = len(good) * len(spoiled)
  return float(stats.mannwhitneyu(good, spoiled).statistic / pairs)


def page(runs: Sequence[Mapping[str, Any]]) -> str:
  """Returns the page, of the runs that are done."""
  found: dict[str, dict[str, dict[int, Any]]] = {}
  for run in runs:
    arms = found.setdefault(run["part"], {})
    arms.setdefault(run["arm"], {})[run["seed"]] = run
  wanted = len(SEEDS) * sum(map(len, PARTS.values()))
  lines = [_ABOUT, f"Runs done: {len(runs)} of {wanted}.", ""]
  for part, arms in found.items():
    lines += [f"## {part}", "", _TEXTS[part], ""]
    lines += _table(
      (
        "",
        "accuracy of each seed (its number)",
        "median",
        "mean and 95% interval",
        "steps",
      ),
      [
        (
          arm,
          " ".join(f"{r['accuracy']:.1%} ({s})" for s, r in seeds.items()),
          f"{np.median(_accuracies(seeds)):.1%}",
          text.estimate(comparison.over_seeds(_accuracies(seeds))),
          " ".join(str(run["steps"]) for run in seeds.values()),
        )
        for arm, seeds in arms.items()
      ],
    )
    lines += _differences(part, found)
    lines += _weights_table(arms)
  return "\n".join(lines)


def _accuracies(seeds: Mapping[int, Any]) -> list[float]:
  return [run["accuracy"] for run in seeds.values()]


def _differences(part: str, found: Mapping[str, Any]) -> Iterator[str]:
  """BRIDGE less `mixed`, and its share of the way to the oracle."""
  arms = found[part]
  oracle = found.get(_ORACLES.get(part, ""), {}).get("oracle", {})
  rows = []
  for arm, seeds in arms.items():
    if not arm.startswith("bridge") or "mixed" not in arms:
      continue
    both = [seed for seed in seeds if seed in arms["mixed"]]
    value = lambda runs, seed: runs[seed]["accuracy"]
    more = [value(seeds, s) - value(arms["mixed"], s) for s in both]
    shares = [
      m / (value(oracle, s) - value(arms["mixed"], s))
      for m, s in zip(more, both, strict=True)
      if s in oracle
    ]
    rows.append(
      (
        arm,
        text.estimate(comparison.over_seeds(more), "+"),
        " ".join(f"{share:.0%}" for share in shares),
        f"{np.median(shares):.0%}" if shares else "",
      )
    )
  if rows:
    head = ("", "less `mixed`, mean and 95% interval")
    yield from _table(
      (*head, "of the way to the oracle, each seed", "median"), rows
    )


def _weights_table(arms: Mapping[str, Mapping[int, Any]]) -> Iterator[str]:
  rows = []
  for arm, seeds in arms.items():
    learned = [run for run in seeds.values() if "kinds" in run]
    if not learned:
      continue
    each = lambda name, runs=learned: " ".join(
      f"{run[name]:.2f}" if name in run else "-" for run in runs
    )
    kinds = "; ".join(
      f"{kind} "
      + " ".join(f"{run['kinds'][kind]['weight']:.2f}" for run in learned)
      for kind in learned[0]["kinds"]
    )
    rows.append(
      (
        arm,
        each("auroc_of_mean_weight"),
        each("auroc_of_weight"),
        kinds,
        f"{max(run['most_seen'] for run in learned)}",
        " ".join(str(run["steps_with_signal"]) for run in learned),
      )
    )
  if rows:
    yield from _table(
      (
        "",
        "AUROC, mean weight",
        "AUROC, final weight",
        "final weight by kind",
        "seen, at most",
        "steps with a signal",
      ),
      rows,
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
  for row in (head, ["---"] * len(head), *rows):
    yield f"| {' | '.join(row)} |"
  yield ""


_ABOUT = """# Results: spoiled demonstrations

This page is written by `python experiments/spoiled_demonstrations.py`; no
number of a result in it was typed. Each run is
`configs/spoiled_demonstrations.py` with another seed, which has other
demonstrations, too: 60,000 sampled tokens or 120 steps, accuracy on 500
held-out questions, 1.8% before. `mixed` is one weighted loss, the oracle
`mixed` on the good demonstrations alone, `grpo` RL alone; `bridge` learns a
weight for each demonstration. Intervals are Student's t over seeds. AUROC: how
often a good demonstration has a larger weight than a spoiled one, of the mean
weight over the run and of the final one.
"""
_TEXTS = {
  "guesses": "Of 64 demonstrations 48 are right answers without a step.",
  "slips": "Of 64 demonstrations 48 have one wrong intermediate value; what "
  "follows and the answer are those of the right solution. The 16 good ones "
  "are those of the guesses, and so is the oracle.",
  "clean": "All 64 demonstrations are worked solutions.",
  "once": "2,000 demonstrations, half of them guesses; a run sees each at "
  "most once. `bridge` by what a weight depends on (`method.bridge.per`).",
  "sparse": "The first two with 16 rollouts a step, in 120 steps: a quarter of "
  "them or more say nothing.",
}


if __name__ == "__main__":
  compile_cache.enable()
  sys.exit(main())
