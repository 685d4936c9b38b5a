"""Which demonstrations helped the reward, for the screen and the page."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bilevel_jax.reporting import pages
from bilevel_jax.runs import directory, records

_SHOWN = 10  # of the most and of the least useful
_LONGEST = 1000  # characters of a text


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


def of_run(run_dir: str | pathlib.Path) -> str:
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
      cards = "".join(_card(row, chosen is most) for row in chosen)
      parts.append(f"<h3>{title}</h3>{cards}")
  return pages.section("Demonstrations", "\n".join(parts))


def _card(row: Mapping[str, Any], useful: bool) -> str:
  facts = [
    f"weight {row['weight']:.2f}",
    f"effect {row['effect']:+.2f} ± {row['standard_error'] or 0:.2f}",
    f"seen {row['times_seen']} times",
  ]
  if row["group"] is not None:
    facts.insert(0, row["group"])
  texts = [str(row[name])[:_LONGEST] for name in ("question", "solution")]
  return pages.article(" · ".join(facts), useful, *texts)


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
