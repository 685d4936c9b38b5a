"""comparison.html, comparison.json and a PNG of every picture."""

import base64
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bilevel_jax.reporting import charts, comparison_charts, pages, text
from bilevel_jax.reporting.groups import Group
from bilevel_jax.runs import records

_CAPTIONS = {
  "accuracy": "Greedy or sampled as the runs evaluated; bands: 95% over seeds.",
  "final": "Intervals as in the table.",
  "reward": "On training questions, smoothed; bands: 95% over seeds.",
  "gain": "Reward of the joint policy less that of the RL-only one, on the "
  "same rollouts, smoothed.",
  "cost": "Means over seeds. The first step, which compiles, stands apart.",
}
_WIDE = ("accuracy", "reward")  # pictures with several panels
_EXAMPLES = 4  # questions whose answers are shown side by side
_SPENT = {
  "steps": "steps",
  "tokens": "sampled tokens",
  "flops": "update FLOPs",
  "seconds": "seconds",
}


def write_comparison(
  out: pathlib.Path,
  groups: Sequence[Group],
  summary: Mapping[str, Any],
  title: str,
) -> pathlib.Path:
  """Returns the path of the page that it writes, with JSON and PNGs beside it.

  Args:
    summary: what `comparison.compare_groups` returned for them.
  """
  out.mkdir(parents=True, exist_ok=True)
  plotted = {}
  pictures = comparison_charts.draw_comparison(groups, summary)
  for name, picture in pictures.items():
    data = charts.png(picture, dpi=160)
    (out / f"{name}.png").write_bytes(data)
    plotted[name] = _picture(data, _CAPTIONS[name])
  records.write_atomically(
    out / "comparison.json", json.dumps(finite(summary), indent=1) + "\n"
  )
  count = sum(len(group.runs) for group in groups)
  page = pages.whole_page(
    title,
    f"{len(groups)} ways of training, {count} runs",
    [
      pages.section("Final accuracy", _finals(summary)),
      pages.section("Curves", _arranged(plotted)),
      pages.section("To a target", _targets(summary)),
      pages.section("Cost of a run", _costs(summary)),
      pages.section("The same questions", _side_by_side(groups)),
      pages.section("What differs", _settings(groups)),
    ],
  )
  records.write_atomically(out / "comparison.html", page)
  return out / "comparison.html"


def finite(tree: Any) -> Any:
  """Returns nested lists and mappings with None for what is no number."""
  if isinstance(tree, Mapping):
    return {name: finite(value) for name, value in tree.items()}
  if isinstance(tree, (list, tuple)):
    return [finite(value) for value in tree]
  if isinstance(tree, float) and not math.isfinite(tree):
    return None
  return tree


def _arranged(plotted: Mapping[str, str]) -> str:
  wide = [plotted[name] for name in _WIDE if name in plotted]
  small = [figure for name, figure in plotted.items() if name not in _WIDE]
  return "".join(wide) + pages.grid("".join(small))


def _picture(data: bytes, caption: str) -> str:
  encoded = base64.b64encode(data).decode()
  return (
    '<figure style="background: #fff; color: #222">'
    f'<img alt="" src="data:image/png;base64,{encoded}">'
    f"<figcaption><span>{pages.escape(caption)}</span></figcaption></figure>"
  )


def _finals(summary: Mapping[str, Any]) -> str:
  rows, pairings = [], {}
  for name, row in summary["groups"].items():
    cells = ["", "", ""]
    if against := row.get("reference_minus_this"):
      pairings[against["paired_by"]] = None
      cells = [
        text.estimate(against["difference"], sign="+"),
        text.p_value(against["p"]),
        text.p_value(against["p_holm"]),
      ]
    rows.append(
      [name, len(row["seeds"]), text.estimate(row["accuracy"]), *cells]
    )
  head = (
    "",
    "seeds",
    "accuracy (95% interval)",
    f"{summary['reference']} less this (95% interval)",
    "p",
    "p, Holm",
  )
  return pages.table(head, rows, "figures") + pages.paragraph(
    "Last evaluation of each run. The interval of an accuracy is Student's t "
    "over seeds, or with one seed over questions. Differences are paired by "
    f"{'; '.join(pairings)}: by seed and, where both have "
    "records of the same questions, by question too, both as random effects "
    "(evaluation.paired.crossed). Holm's p-values allow for the number of rows."
  )


def _targets(summary: Mapping[str, Any]) -> str:
  if not math.isfinite(summary["target"]):
    return "<p>No run was evaluated.</p>"
  rows = []
  for name, row in summary["groups"].items():
    found = row["to_target"]
    medians = found["median"] or {}
    reached = f"{found['reached']} of {found['of']}"
    rows.append([name, reached, *(text.count(medians.get(n)) for n in _SPENT)])
  head = ("", "seeds that reach it", *_SPENT.values())
  return (
    f"<p>Medians, at the first evaluation at or above "
    f"{summary['target']:.1%}.</p>{pages.table(head, rows, 'figures')}"
  )


def _costs(summary: Mapping[str, Any]) -> str:
  spent = [name for name in _SPENT if name != "seconds"]
  costs = {name: row["cost"] for name, row in summary["groups"].items()}
  phases = list(next(iter(costs.values()))["seconds"])
  rows = [
    [
      name,
      *(text.count(cost[what]) for what in spent),
      f"{cost['step_s']:.3f}",
      *(f"{cost['seconds'][phase]:.1f}" for phase in phases),
    ]
    for name, cost in costs.items()
  ]
  head = ["", *(_SPENT[name] for name in spent), "median step, s"]
  return pages.table([*head, *(f"{p}, s" for p in phases)], rows, "figures")


def _side_by_side(groups: Sequence[Group]) -> str:
  runs = {group.name: group.runs[0] for group in groups}
  held_out = {name: run.answers for name, run in runs.items()}
  trained = {
    name: {row["question_id"]: row for row in run.completions}
    for name, run in runs.items()
    if run.completions
  }
  if chosen := _common(held_out):
    # First those on which the methods differ most.
    share = lambda q: (
      sum(a[q]["correct"] for a in held_out.values()) / len(runs)
    )
    chosen.sort(key=lambda q: (abs(share(q) - 0.5), q))
    note = "Held-out questions on which the methods differ most; first seed."
    shown = held_out
  elif chosen := _common(trained):
    note = "Training questions, as last sampled; first seed."
    shown = trained
  else:
    return "<p>No question was answered by all of them.</p>"
  parts = [part for q in chosen[:_EXAMPLES] for part in _answers(q, shown)]
  return f"<p>{note}</p>{''.join(parts)}"


def _common(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Returns the questions that all have, in order."""
  return sorted(set.intersection(*map(set, rows.values()))) if rows else []


def _answers(
  question: str, named: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
  first = next(iter(named.values()))[question]
  yield f"<h3>{pages.escape(first['prompt'])}</h3>"
  yield f"<p>Answer: {pages.escape(first['answer'])}</p><div class='grid'>"
  for name, rows in named.items():
    row = rows[question]
    _, right = text.verdict(row)
    head = f"{name} · {'right' if right else 'wrong'} · {row['tokens']} tokens"
    yield pages.article(head, right, row["completion"])
  yield "</div>"


def _settings(groups: Sequence[Group]) -> str:
  each = [group.runs[0].settings for group in groups]
  rows = []
  for name in dict.fromkeys(name for one in each for name in one):
    values = [text.setting(one.get(name)) for one in each]
    if len(set(values)) > 1 and name not in ("run_dir", "seed"):
      rows.append([name, *values])
  if not rows:
    return "<p>Nothing but the seed.</p>"
  return pages.table(["setting", *(group.name for group in groups)], rows)
