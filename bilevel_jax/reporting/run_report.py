"""report.html: a run as one page that needs nothing else."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bilevel_jax import config
from bilevel_jax.data import json_lines
from bilevel_jax.reporting import charts, demonstrations, held_out, pages, text
from bilevel_jax.runs import directory, records


def write_report(run_dir: str | pathlib.Path) -> pathlib.Path:
  """Returns the path of the report that it writes from a run's files.

  Args:
    run_dir: a run directory; files and metrics that it lacks are left out.
  """
  files = directory.RunDirectory(pathlib.Path(run_dir).absolute())
  steps = records.by_step(files.metrics)
  settings = {}
  if files.settings.exists():
    settings = json_lines.parse(
      files.settings.read_bytes(), str(files.settings)
    )
  sections = [
    _accuracies(steps),
    _charts(steps),
    demonstrations.of_run(files.path),
    held_out.of_run(files.path),
    _completions(records.read_records(files.completions)),
    _settings(settings),
  ]
  page = pages.whole_page(
    f"Run {files.path.name}", _subtitle(settings, steps), filter(None, sections)
  )
  records.write_atomically(files.report, page)
  return files.report


def _subtitle(
  settings: Mapping[str, Any], steps: Mapping[int, Mapping[str, float]]
) -> str:
  given = settings.get("config", {})
  model = given.get("model", {})
  parts = [
    given.get("method", {}).get("name"),
    model.get("weights") or model.get("preset"),
    f"{max(steps, default=0)} steps",
  ]
  return " · ".join(str(part) for part in parts if part)


def _accuracies(steps: Mapping[int, Mapping[str, float]]) -> str:
  """Returns the accuracies at the start and at the end, where they are."""
  name = "evaluation/accuracy"
  found = {step: logged for step, logged in steps.items() if name in logged}
  rows = [
    (
      f"{'after' if step else 'before'} (step {step})",
      f"{logged[name]:.1%}",
      text.interval(logged.get(f"{name}_low"), logged.get(f"{name}_high")),
      text.count(logged.get("evaluation/questions")),
    )
    for step, logged in found.items()
    if step in (0, max(found))
  ]
  if not rows:
    return ""
  head = ("", "accuracy", "95% interval", "questions")
  return pages.section("Accuracy", pages.table(head, rows, "figures"))


def _charts(steps: Mapping[int, Mapping[str, float]]) -> str:
  figures = [
    pages.figure(chart.title, chart.unit, drawing)
    for chart in charts.CHARTS
    if (drawing := charts.svg(chart, steps))
  ]
  if not figures:
    return ""
  return pages.section("Curves", pages.grid("\n".join(figures)))


def _completions(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns those of the first, a middle and the last step."""
  steps = sorted({row["step"] for row in rows})
  if not steps:
    return ""
  parts = []
  for step in dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1])):
    parts.append(f"<h3>Step {step}</h3>")
    parts.extend(_card(row) for row in rows if row["step"] == step)
  return pages.section("Sample completions", "\n".join(parts))


def _card(row: Mapping[str, Any]) -> str:
  worth, good = text.verdict(row)
  facts = [worth, f"ended by {row.get('finish_reason', 'unknown')}"]
  if row.get("answer") is not None:
    facts.append(f"answer {row['answer']}")
  texts = (row.get("prompt", ""), row.get("completion", ""))
  return pages.article(" · ".join(facts), good, *texts)


def _settings(settings: Mapping[str, Any]) -> str:
  if not settings:
    return ""
  defaults = config.defaults()
  given = dict(config.flat(settings.get("config", {})))
  rows = [(name, text.setting(value)) for name, value in given.items()]
  changed = [row for row in rows if given[row[0]] != defaults.get(row[0])]
  versions = list(settings.get("versions", {}).items())
  head = ("setting", "value")
  return pages.section(
    "Settings",
    pages.table(head, changed)
    + pages.folded("All settings", pages.table(head, rows))
    + pages.folded("Versions", pages.table(("package", "version"), versions)),
  )
