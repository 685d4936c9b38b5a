"""comparison.html, comparison.json and a PNG of every picture."""

import base64
import io
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bilevel_jax.comparison import pictures
from bilevel_jax.comparison import runs as runs_lib
from bilevel_jax.training import page, run_directory

_CAPTIONS = {
  "accuracy": "Greedy or sampled as the runs evaluated; bands: 95% over seeds.",
  "final": "Intervals as in the table.",
  "reward": "On training questions, smoothed; bands: 95% over seeds.",
  "gain": "Reward of the joint policy less that of the RL-only one, on the "
  "same rollouts, smoothed.",
  "cost": "Means over seeds. The first step, which compiles, stands apart.",
}
_WIDE = ("accuracy", "reward")  # pictures with three panels
_EXAMPLES = 4  # questions whose answers are shown side by side


def write(
  out: pathlib.Path,
  groups: Sequence[runs_lib.Group],
  summary: Mapping[str, Any],
  title: str,
) -> pathlib.Path:
  """Returns the path of the page that it writes, with JSON and PNGs beside it.

  Args:
    out: directory, made if need be.
    groups: of runs that differ by seed.
    summary: what `figures.summarise` returned for them.
  """
  out.mkdir(parents=True, exist_ok=True)
  drawn = {}
  for name, picture in pictures.draw(groups, summary).items():
    data = io.BytesIO()
    picture.savefig(data, format="png", dpi=160, metadata={"Software": None})
    (out / f"{name}.png").write_bytes(data.getvalue())
    drawn[name] = _picture(data.getvalue(), _CAPTIONS[name])
  run_directory.write_atomically(
    out / "comparison.json", json.dumps(finite(summary), indent=1) + "\n"
  )
  count = sum(len(group.runs) for group in groups)
  text = page.render(
    title,
    f"{len(groups)} ways of training, {count} runs",
    [
      page.section("Final accuracy", _finals(summary)),
      page.section("Curves", _arranged(drawn)),
      page.section("To a target", _targets(summary)),
      page.section("Cost of a run", _costs(summary)),
      page.section("The same questions", _side_by_side(groups)),
      page.section("What differs", _settings(groups)),
    ],
  )
  run_directory.write_atomically(out / "comparison.html", text)
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


def _arranged(drawn: Mapping[str, str]) -> str:
  wide = [drawn[name] for name in _WIDE if name in drawn]
  narrow = [figure for name, figure in drawn.items() if name not in _WIDE]
  return "".join(wide) + f'<div class="grid">{"".join(narrow)}</div>'


def _picture(data: bytes, caption: str) -> str:
  encoded = base64.b64encode(data).decode()
  return (
    '<figure style="background: #fff; color: #222">'
    f'<img alt="" src="data:image/png;base64,{encoded}">'
    f"<figcaption><span>{page.text(caption)}</span></figcaption></figure>"
  )


def _finals(summary: Mapping[str, Any]) -> str:
  reference = summary["reference"]
  rows, pairings = [], []
  for name, row in summary["groups"].items():
    cells = [name, len(row["seeds"]), estimate(row["accuracy"])]
    against = row.get("reference_minus_this")
    if against is None:
      rows.append([*cells, "", "", ""])
      continue
    pairings.append(against["paired_by"])
    rows.append(
      [
        *cells,
        estimate(against["difference"], sign="+"),
        _p(against["p"]),
        _p(against["p_holm"]),
      ]
    )
  head = (
    "",
    "seeds",
    "accuracy (95% interval)",
    f"{reference} less this (95% interval)",
    "p",
    "p, Holm",
  )
  return page.table(head, rows, "figures") + page.paragraph(
    "Last evaluation of each run. The interval of an accuracy is Student's t "
    "over seeds, or with one seed over questions. Differences are paired by "
    f"{'; '.join(dict.fromkeys(pairings))}: by seed and, where both have "
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
    rows.append(
      [
        name,
        f"{found['reached']} of {found['of']}",
        *(_number(medians.get(against)) for against in runs_lib.AGAINST),
      ]
    )
  head = (
    "",
    "seeds that reach it",
    "steps",
    "sampled tokens",
    "update FLOPs",
    "seconds",
  )
  return (
    f"<p>Medians, at the first evaluation at or above "
    f"{summary['target']:.1%}.</p>{page.table(head, rows, 'figures')}"
  )


def _costs(summary: Mapping[str, Any]) -> str:
  groups = summary["groups"]
  phases = list(next(iter(groups.values()))["cost"]["seconds"])
  rows = [
    [
      name,
      _number(row["cost"]["steps"]),
      _number(row["cost"]["tokens"]),
      _number(row["cost"]["flops"]),
      f"{row['cost']['step_s']:.3f}",
      *(f"{row['cost']['seconds'][phase]:.1f}" for phase in phases),
    ]
    for name, row in groups.items()
  ]
  head = ("", "steps", "sampled tokens", "update FLOPs", "median step, s")
  return page.table(
    (*head, *(f"{phase}, s" for phase in phases)), rows, "figures"
  )


def _side_by_side(groups: Sequence[runs_lib.Group]) -> str:
  shown = [(group.name, group.runs[0]) for group in groups]
  held_out = [run.answers for _, run in shown]
  common = set.intersection(*(set(answers) for answers in held_out))
  if common:
    # First those on which the methods differ most.
    share = lambda q: sum(a[q]["correct"] for a in held_out) / len(held_out)
    chosen = sorted(common, key=lambda q: (abs(share(q) - 0.5), q))[:_EXAMPLES]
    named = [(name, run.answers) for name, run in shown]
    note = "Held-out questions on which the methods differ most; first seed."
  else:
    named = [
      (name, {c["question_id"]: c for c in run.completions})
      for name, run in shown
      if run.completions
    ]
    seen = [set(records) for _, records in named]
    chosen = sorted(set.intersection(*seen))[:_EXAMPLES] if seen else []
    note = "Training questions, as last sampled; first seed."
  if not chosen:
    return "<p>No question was answered by all of them.</p>"
  return f"<p>{note}</p>" + "".join(
    "".join(_answers(question, named)) for question in chosen
  )


def _answers(
  question: str, named: Sequence[tuple[str, Mapping[str, Any]]]
) -> Iterator[str]:
  first = named[0][1][question]
  yield f"<h3>{page.text(first['prompt'])}</h3>"
  yield f"<p>Answer: {page.text(first['answer'])}</p><div class='grid'>"
  for name, records in named:
    record = records[question]
    right = bool(record.get("correct", record.get("reward")))
    yield (
      f'<article class="{"good" if right else "bad"}">'
      f"<header>{page.text(name)} · {'right' if right else 'wrong'} · "
      f"{record['tokens']} tokens</header>"
      f"<pre>{page.text(record['completion'])}</pre></article>"
    )
  yield "</div>"


def _settings(groups: Sequence[runs_lib.Group]) -> str:
  each = [group.runs[0].settings for group in groups]
  names = list(dict.fromkeys(name for one in each for name in one))
  rows = []
  for name in names:
    values = [
      json.dumps(one.get(name), ensure_ascii=False, default=str) for one in each
    ]
    if len(set(values)) > 1 and name not in ("run_dir", "seed"):
      rows.append([name, *values])
  if not rows:
    return "<p>Nothing but the seed.</p>"
  return page.table(["setting", *(group.name for group in groups)], rows)


def estimate(found: Sequence[float], sign: str = "") -> str:
  """Returns a share and its interval as text.

  Args:
    found: value, low, high; None or NaN is unknown.
    sign: "+" shows that of a difference.
  """
  value, low, high = (math.nan if x is None else x for x in found)
  if math.isnan(value):
    return ""
  if math.isnan(low):
    return f"{value:{sign}.1%}"
  return f"{value:{sign}.1%} ({low:{sign}.1%} to {high:{sign}.1%})"


def _p(value: float) -> str:
  if value is None or math.isnan(value):
    return ""
  return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float | None) -> str:
  if value is None or math.isnan(value):
    return ""
  return f"{value:,.0f}" if value < 1e9 else f"{value:.2e}"
