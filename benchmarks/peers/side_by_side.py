"""What the benchmarks beside peers share: taking turns, and saying so."""

import argparse
import contextlib
import json
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import rich.console
import rich.progress
import rich.table

from benchmarks.peers import contestants, workloads
from bilevel_jax import command_line
from bilevel_jax.models import presets
from bilevel_jax.weights import huggingface_config

Figures = dict[str, Any]


class Asked(Protocol):
  """What every contestant is asked to do."""

  @property
  def name(self) -> str: ...
  def request(self, seed: int) -> dict[str, Any]: ...


class Turns(NamedTuple):
  """One thing asked, and how often each contestant has done it."""

  asked: Any
  running: list[contestants.Contestant]
  runs: list[list[dict[str, Any]]]  # of each: the first, then the timed ones

  def row(
    self,
    number: int,
    speed: Callable[[dict[str, Any]], float] = lambda run: 1 / run["seconds"],
  ) -> dict[str, Any]:
    """Returns what is said of every contestant: times, and the pairs' ratio.

    Args:
      number: of the contestant; the first is what "ours" means.
      speed: run -> a number whose ratio is taken.
    """
    first, *timed = self.runs[number]
    pairs = zip(self.runs[0][1:], timed, strict=True)
    ratios = [speed(own) / speed(run) for own, run in pairs]
    return {
      "contestant": str(self.running[number]),
      "seconds": [run["seconds"] for run in timed],
      "first_seconds": first["seconds"],
      "compilations": first["compilations"],
      "compilations_while_timed": sum(run["compilations"] for run in timed),
      "ours_over_it": statistics.median(ratios),
      "ours_over_it_range": [min(ratios), max(ratios)],
    }


def main(
  options: argparse.Namespace,
  benchmark: Callable[[argparse.Namespace, pathlib.Path], Figures],
  table: Callable[[Figures], rich.table.Table],
) -> int:
  """Returns the exit code: 0, 2 for what the user can mend, 130 interrupted.

  Args:
    options: of the command line, `json` among them.
    benchmark: as `figures` takes it.
    table: what to show of them.
  """

  def work() -> None:
    found = figures(options, benchmark)
    console = rich.console.Console()
    if not console.is_terminal:
      console.width = 160  # a file or a pipe has no width
    console.print(table(found))

  return command_line.exit_code(work)


def figures(
  options: argparse.Namespace,
  benchmark: Callable[[argparse.Namespace, pathlib.Path], Figures],
) -> Figures:
  """Returns what a benchmark finds, and writes it to `options.json`.

  Args:
    options: of the command line.
    benchmark: (options, a directory to write to) -> figures, which JSON can
      hold; a ConfigError for an option that cannot be met, or a contestant
      that fails.
  """
  with tempfile.TemporaryDirectory() as scratch:
    found = benchmark(options, pathlib.Path(scratch))
  if options.json is not None:
    options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
  return found


def take_turns(
  plans: Sequence[contestants.Plan],
  set_up: dict[str, Any],
  asked: Sequence[Asked],
  repeats: int,
  *,
  able: Callable[[Any, str], bool] = lambda asked, contestant: True,
  check: Callable[[Any, dict[str, Any], str], None] = lambda *_: None,
) -> tuple[list[dict[str, Any]], list[Turns]]:
  """Returns who they are, and what each made of what it was asked (A B A B).

  Args:
    plans: of the contestants.
    set_up: what each is told first.
    asked: what they do, one after the other.
    repeats: timed runs; one comes before them.
    able: (asked, contestant) -> whether it can.
    check: (asked, run, contestant) -> nothing, or ConfigError.
  """
  screen = rich.console.Console(stderr=True)
  with contextlib.ExitStack() as stack:
    with screen.status("starting the contestants"):
      running = [
        stack.enter_context(contestants.Contestant(plan, set_up))
        for plan in plans
      ]
    progress = stack.enter_context(
      rich.progress.Progress(
        console=screen, transient=True, disable=not screen.is_terminal
      )
    )
    turns = []
    for one in asked:
      those = [c for c in running if able(one, str(c))]
      turns.append(Turns(one, those, [[] for _ in those]))
    total = (1 + repeats) * sum(len(turn.running) for turn in turns)
    task = progress.add_task("", total=total)
    for one, those, runs in turns:
      for seed in range(1 + repeats):
        for contestant, own in zip(those, runs, strict=True):
          progress.update(task, description=f"{one.name}: {contestant}")
          own.append(contestant.run(one.request(seed)))
          check(one, own[-1], str(contestant))
          progress.advance(task)
  about = [{"label": str(c), **c.about} for c in running]
  return about, turns


def random_model(
  options: argparse.Namespace, scratch: pathlib.Path
) -> presets.Architecture:
  """Returns the architecture of --preset, or of the comparison; config.json of
  it, in --dtype, is in `scratch`."""
  architecture = workloads.BENCH
  if options.preset is not None:
    architecture = presets.get(options.preset)
  fields = huggingface_config.config_fields(
    architecture, options.dtype, {"eos_token_id": workloads.EOS}
  )
  (scratch / "config.json").write_text(json.dumps(fields), "utf-8")
  return architecture


def table(
  title: str,
  figures: Figures,
  columns: dict[str, Callable[[dict[str, Any]], str]],
) -> rich.table.Table:
  """Returns a row for each contestant of each thing asked.

  Args:
    title: key of a row's name, and head of its column.
    figures: contestants and rows.
    columns: head -> what of a row to show.
  """
  first = figures["contestants"][0]["label"]
  made = rich.table.Table(
    title,
    "contestant",
    *(rich.table.Column(head, justify="right") for head in columns),
    caption="\n".join(
      f"{c['label']}: {c['name']}, {c['device']}, {c['parameters']:,} "
      "parameters"
      for c in figures["contestants"]
    ),
  )
  for row in figures["rows"]:
    ours = row["contestant"] == first
    if ours:
      made.add_section()
    made.add_row(
      row[title] if ours else "",
      row["contestant"],
      *(show(row) for show in columns.values()),
    )
  return made


def compared(figures: Figures) -> dict[str, Callable[[dict[str, Any]], str]]:
  """Returns the columns with the first contestant's speed over the others'."""
  first = figures["contestants"][0]["label"]
  blank = lambda row, text: "" if row["contestant"] == first else text
  return {
    "ours / it": lambda row: blank(row, f"{row['ours_over_it']:.2f}"),
    "range": lambda row: blank(
      row, "{:.2f}..{:.2f}".format(*row["ours_over_it_range"])
    ),
  }


def add_options(add: Callable[..., Any]) -> None:
  """Adds what both benchmarks ask of the command line."""
  add("--peer", metavar="PYTHON", help="interpreter that has google-tunix")
  add("--preset", metavar="NAME", help="random weights of this architecture")
  add(
    "--repeats",
    type=contestants.count,
    metavar="N",
    default=5,
    help="timed runs of each (default 5)",
  )
  add("--dtype", choices=("float32", "bfloat16"), default="float32")
  add(
    "--json", type=pathlib.Path, metavar="FILE", help="write the figures here"
  )
