"""Draws what a run showed on a terminal, from its files, as an SVG picture.

python tools/draw_run.py runs/quickstart --out quickstart.svg
"""

import argparse
import io
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import rich.console

from bilevel_jax import command_line, config, errors
from bilevel_jax.evaluation import benchmarks
from bilevel_jax.reporting import terminal
from bilevel_jax.runs import directory, records


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code of `command_line.exit_code`."""
  parser = command_line.Parser("python tools/draw_run.py", __doc__)
  parser.add_argument("run_dir", type=pathlib.Path)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--title", help="above the picture; default: RUN_DIR")
  parser.add_argument("--every", type=int, default=10, help="steps of a line")
  parser.add_argument("--samples", type=int, default=2, help="of a step")
  chosen = parser.parse_args(arguments)
  return command_line.exit_code(lambda: _draw(chosen))


def _draw(chosen: argparse.Namespace) -> None:
  bounds = {"every": {"at_least": 1}, "samples": {"at_least": 0}}
  command_line.check_bounds(chosen, bounds)
  files = directory.RunDirectory(chosen.run_dir)
  for path in (files.metrics, files.completions):
    if not path.is_file():
      raise errors.ConfigError(f"nothing to draw: no {path}")
  steps = records.by_step(files.metrics)
  if not steps:
    raise errors.ConfigError(f"nothing to draw: {files.metrics} is empty")
  samples = records.read_records(files.completions)
  try:
    console = draw(steps, samples, chosen.run_dir, chosen.every, chosen.samples)
  except KeyError as error:
    raise errors.ConfigError(
      f"{chosen.run_dir} must hold what a run writes, but a line lacks {error}"
    ) from error
  chosen.out.parent.mkdir(parents=True, exist_ok=True)
  picture = console.export_svg(title=chosen.title or str(chosen.run_dir))
  # Fonts that a reader's browser would fetch; its own will do.
  picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
  chosen.out.write_text(picture)


def draw(
  steps: dict[int, dict[str, float]],
  samples: list[dict[str, Any]],
  run_dir: pathlib.Path,
  every: int,
  count: int,
) -> rich.console.Console:
  """Returns a console that recorded the run.

  Args:
    steps: what was logged at each.
    samples: of completions.jsonl.
    run_dir: named in the last line.
    every: steps between those that are plotted.
    count: completions of each step that is plotted.
  """
  console = rich.console.Console(
    record=True, width=80, file=io.StringIO(), force_terminal=True
  )
  elapsed = 0.0
  screen = terminal.Display(
    max(steps),
    0,
    config.Logging(progress=False),
    console=console,
    clock=lambda: elapsed,
  )
  results = []
  with screen:
    for step, line in steps.items():
      elapsed += line.get("time/step_s", 0.0)
      if step == 1 or (step and step % every == 0):
        rows = [row for row in samples if row["step"] == step]
        screen.completions(step, rows[:count])
        screen.step(step, line)
      if "evaluation/correct" in line:
        results.append(benchmarks.Result.from_metrics(line))
        screen.evaluation(step, results[-1])
    before, after = (results[0], results[-1]) if results else (None, None)
    screen.closing(before, after, run_dir)
  return console


if __name__ == "__main__":
  sys.exit(main())
