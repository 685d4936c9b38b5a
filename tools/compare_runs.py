"""Compares runs: one page, pictures and every number of them.

    python tools/compare_runs.py runs/* --out comparison

Runs of one method with the same settings are replicates, whatever their seeds;
a setting that runs of a method do not share makes groups of them. Writes
OUT/comparison.html (needs nothing else), OUT/comparison.json and PNGs.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import rich.console
import rich.table

from bilevel_jax import command_line, errors
from bilevel_jax.reporting import comparison, comparison_page, groups, text
from bilevel_jax.runs import finished


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code of `command_line.exit_code`."""
  parser = command_line.Parser("python tools/compare_runs.py", __doc__)
  parser.add_argument("run_dirs", nargs="+", metavar="RUN")
  parser.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("comparison")
  )
  parser.add_argument(
    "--reference",
    help="group that the others are compared with, by its name in the table; "
    "default: bridge where there is one, else the first",
  )
  parser.add_argument(
    "--target",
    type=float,
    help="accuracy whose cost is told; default: half way from the start to "
    "the best group",
  )
  parser.add_argument("--title", default="Comparison of runs")
  chosen = parser.parse_args(arguments)
  return command_line.exit_code(lambda: _compare(chosen))


def _compare(chosen: argparse.Namespace) -> None:
  command_line.check_bounds(chosen, {"target": {"at_least": 0, "at_most": 1}})
  runs = [finished.read_run(path) for path in chosen.run_dirs]
  found = groups.group(runs)
  reference = _reference([group.name for group in found], chosen.reference)
  summary = comparison.compare_groups(found, reference, chosen.target)
  written = comparison_page.write_comparison(
    chosen.out, found, summary, chosen.title
  )
  table = rich.table.Table("", "seeds", "accuracy (95% interval)")
  for name, row in summary["groups"].items():
    accuracy = text.estimate(row["accuracy"])
    table.add_row(name, str(len(row["seeds"])), accuracy)
  console = rich.console.Console(highlight=False)
  console.print(table)
  console.print(f"page: {written}")


def _reference(names: list[str], asked: str | None) -> str:
  if asked is None:
    return next((name for name in names if name == "bridge"), names[0])
  if asked not in names:
    raise errors.ConfigError(
      f"--reference must be one of {'; '.join(names)}, got {asked!r}"
    )
  return asked


if __name__ == "__main__":
  sys.exit(main())
