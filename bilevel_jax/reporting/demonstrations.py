"""Which demonstrations helped the reward, for the screen and the page."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bilevel_jax.reporting import pages
from bilevel_jax.runs import directory, records

_SHOWN = 10  # of the most and of the least useful


def summary(run_dir: str | pathlib.Path) -> list[str]:
  """Returns lines on the weights of a run's demonstrations; [] without any.

  Args:
    run_dir: a run directory, with `demonstrations.jsonl` or without.
  """
  return _summary(_rows(run_dir))


def _summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  if not rows:
    return []
  total = sum(row["weight"] for row in rows)
  squares = sum(row["weight"] ** 2 for row in rows)
  lines = [
    f"demonstrations: {len(rows)}, effective number "
    f"{total**2 / squares if squares else 0:.1f}"
  ]
  for name, members in _groups(rows).items():
    weights = [row["weight"] for row in members]
    lines.append(
      f"  {name}: mean weight {sum(weights) / len(weights):.2f}, "
      f"{sum(weights) / total if total else 0:.0%} of all weight, "
      f"{len(weights)} demonstrations"
    )
  return lines


def section(run_dir: str | pathlib.Path) -> str:
  """Returns the page's section, the most and the least useful ones as text.

  Args:
    run_dir: a run directory, with `demonstrations.jsonl` or without.
  """
  rows = _rows(run_dir)
  if not rows:
    return ""
  measured = [row for row in rows if row["effect"] is not None]
  measured.sort(key=lambda row: (-row["weight"], -row["effect"]))
  words = "".join(map(pages.paragraph, _summary(rows)))
  most, least = measured[:_SHOWN], measured[_SHOWN:][::-1][:_SHOWN]
  parts = [words]
  for title, chosen in (("Most useful", most), ("Least useful", least)):
    if chosen:
      parts.append(f"<h3>{title}</h3>{_table(chosen)}")
  return pages.section("Demonstrations", "\n".join(parts))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
  head = ("question", "solution", "group", "weight", "effect", "times seen")
  return pages.table(
    head,
    [
      (
        str(row["question"])[:200],
        str(row["solution"])[:200],
        row["group"] or "",
        f"{row['weight']:.2f}",
        f"{row['effect']:+.2f} ± {row['standard_error'] or 0:.2f}",
        str(row["times_seen"]),
      )
      for row in rows
    ],
  )


def _rows(run_dir: str | pathlib.Path) -> list[dict[str, Any]]:
  return records.read_records(directory.RunDirectory(run_dir).demonstrations)


def _groups(
  rows: Sequence[Mapping[str, Any]],
) -> dict[str, list[Mapping[str, Any]]]:
  found: dict[str, list[Mapping[str, Any]]] = {}
  for row in rows:
    if row["group"] is not None:
      found.setdefault(row["group"], []).append(row)
  return dict(sorted(found.items()))
