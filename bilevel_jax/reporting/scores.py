"""What an evaluation prints."""

from collections.abc import Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.table

from bilevel_jax.reporting import text


def print_scores(
  results: Mapping[str, Any],
  mean: Sequence[float] | None,
  compared: Mapping[str, Any],
) -> None:
  """Prints the scores, and how they differ from earlier ones.

  Args:
    mean: of the paper's five, where all are there, with its interval.
    compared: what `against.compare` returned, for each earlier directory.
  """
  screen = rich.console.Console(highlight=False)
  if not screen.is_terminal:  # a log has lines as long as need be
    screen = rich.console.Console(highlight=False, width=240)
  screen.print(_scores(results))
  if mean is not None:
    screen.print(f"mean of the five: {text.estimate(mean)}")
  for directory, found in compared.items():
    screen.print(f"\nagainst {directory} ({found['weights']})", soft_wrap=True)
    screen.print(_differences(found))


def _scores(results: Mapping[str, Any]) -> rich.table.Table:
  # A line a score: side by side they are wider than most screens.
  table = _table(
    *("questions", "score", "value", "95%"),
    *("tokens", "truncated", "unscorable"),
  )
  for name, result in results.items():
    about = [name, str(result["questions"])]
    rest = [
      f"{result['tokens'][0]:,.0f}",
      f"{result['truncated_share']:.1%}",
      f"{result['unscorable_share']:.1%}",
    ]
    for score, (value, low, high) in result["scores"].items():
      row = [score, f"{value:.1%}", text.interval(low, high)]
      table.add_row(*about, *row, *rest)
      about, rest = ["", ""], ["", "", ""]
  return table


def _differences(found: Mapping[str, Any]) -> rich.table.Table:
  table = _table("before", "now", "difference", "p")
  rows = dict(found["benchmarks"])
  if "mean_of_five" in found:
    rows["mean of the five"] = found["mean_of_five"]
  for name, row in rows.items():
    table.add_row(
      name,
      f"{row['before']:.1%}",
      f"{row['now']:.1%}",
      text.estimate(row["difference"], sign="+"),
      text.p_value(row["p"]),
    )
  return table


def _table(*headings: str) -> rich.table.Table:
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD, collapse_padding=True)
  table.add_column("", no_wrap=True)
  for heading in headings:
    # Only headings may be folded: numbers and intervals stay in one piece.
    whole = heading in ("95%", "difference", "p")
    table.add_column(heading, justify="right", overflow="fold", no_wrap=whole)
  return table
