"""report.html: a run as one page that needs nothing else."""

import dataclasses
import html
import io
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bilevel_jax import config
from bilevel_jax.training import metrics, page, run_directory


@dataclasses.dataclass(frozen=True)
class Chart:
  """A picture of one or several metrics over steps."""

  title: str
  unit: str
  pattern: str  # of the whole names of its metrics
  logarithmic: bool = False
  low: str | None = None  # metrics that bound the one drawn, or
  high: str | None = None
  error: str | None = None  # its standard error


CHARTS = (
  Chart("Reward", "mean of a step", r"rl/(reward|accuracy|pass_at_group)"),
  Chart(
    "Accuracy on held-out questions",
    "share correct, 95% interval",
    r"evaluation/accuracy",
    low="evaluation/accuracy_low",
    high="evaluation/accuracy_high",
  ),
  Chart("SFT loss", "nats per token, as weighted", r"sft/loss"),
  Chart(
    "Cooperative gain",
    "reward over RL alone, ± 1 standard error",
    r"bilevel/cooperative_gain",
    error="bilevel/cooperative_gain_se",
  ),
  Chart("KL divergence", "nats per token", r".+/kl_.+"),
  Chart("Response length", "tokens", r"(rollout|evaluation)/length"),
  Chart("Entropy", "nats per token", r".+/entropy"),
  Chart("Gradient norms", "before clipping", r".+gradient_norm", True),
  Chart(
    "Gradient cosine", "SFT against RL gradient", r"bilevel/gradient_cosine"
  ),
  Chart("Clipped and cut off", "share", r".+(clip_fraction|truncated_share)"),
  Chart("Seconds per phase", "s", r"time/(?!.*per_s$).+_s"),
  Chart("Tokens per second", "1/s", r"time/.+tokens_per_s"),
)

_COLOURS = ("#3b82f6", "#ea7317", "#10a37f", "#d6409f", "#8e5cf0", "#a8841a")
_INK = "#123456"  # stands for the page's text colour in a drawing


def write(run_dir: str | pathlib.Path) -> pathlib.Path:
  """Returns the path of the report that it writes from a run's files.

  Args:
    run_dir: a run directory; files and metrics that it lacks are left out.
  """
  files = run_directory.RunDirectory(pathlib.Path(run_dir).absolute())
  steps = logged(files.metrics)
  settings = {}
  if files.settings.exists():
    settings = json.loads(files.settings.read_text(encoding="utf-8"))
  sections = [
    _accuracies(steps),
    _charts(steps),
    _completions(metrics.read(files.completions)),
    _settings(settings),
  ]
  text = page.render(
    f"Run {files.path.name}",
    _subtitle(settings, steps),
    [section for section in sections if section],
  )
  run_directory.write_atomically(files.report, text)
  return files.report


def logged(path: pathlib.Path) -> dict[int, dict[str, float]]:
  """Returns everything that was logged, by steps done."""
  steps: dict[int, dict[str, float]] = {}
  for record in metrics.read(path):
    steps.setdefault(record["step"], {}).update(record)
  return dict(sorted(steps.items()))


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
  found = [
    (step, values)
    for step, values in steps.items()
    if "evaluation/accuracy" in values
  ]
  if not found:
    return ""
  named = [("before", *found[0])] if found[0][0] == 0 else []
  if found[-1][0] > 0:
    named.append(("after", *found[-1]))
  rows = []
  for name, step, values in named:
    low = values.get("evaluation/accuracy_low", np.nan)
    high = values.get("evaluation/accuracy_high", np.nan)
    questions = values.get("evaluation/questions", np.nan)
    rows.append(
      (
        f"{name} (step {step})",
        f"{values['evaluation/accuracy']:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{questions:,.0f}",
      )
    )
  head = ("", "accuracy", "95% interval", "questions")
  return page.section("Accuracy", page.table(head, rows, "figures"))


def _charts(steps: Mapping[int, Mapping[str, float]]) -> str:
  drawn = [_chart(chart, steps) for chart in CHARTS]
  figures = "\n".join(figure for figure in drawn if figure)
  if not figures:
    return ""
  return page.section("Curves", f'<div class="grid">{figures}</div>')


def _chart(chart: Chart, steps: Mapping[int, Mapping[str, float]]) -> str:
  # Drawn here only: a run does not wait for matplotlib before it starts.
  import matplotlib
  from matplotlib import figure

  with matplotlib.rc_context(drawing_style(_INK)):
    picture = figure.Figure(figsize=(4, 2.5), layout="constrained")
    lines = plot(picture.add_subplot(), chart, steps)
    if not lines:
      return ""
    if lines > 1:
      picture.legend(
        loc="outside lower center", ncols=2, frameon=False, fontsize=7
      )
    out = io.StringIO()
    picture.savefig(
      out, format="svg", transparent=True, metadata={"Date": None}
    )
  drawing = out.getvalue()
  drawing = drawing[drawing.index("<svg") :].replace(_INK, "currentColor")
  return (
    f"<figure><figcaption>{html.escape(chart.title)} "
    f"<span>{html.escape(chart.unit)}</span></figcaption>{drawing}</figure>"
  )


def plot(
  axes: Any, chart: Chart, steps: Mapping[int, Mapping[str, float]]
) -> int:
  """Returns how many curves it draws: one for each metric of the chart.

  Args:
    axes: of matplotlib; gets curves with labels, their bounds, and scales.
    steps: what was logged, by steps done.
  """
  from matplotlib import ticker

  seen = dict.fromkeys(name for values in steps.values() for name in values)
  names = [name for name in seen if re.fullmatch(chart.pattern, name)]
  positive = False
  for colour, name in zip(_COLOURS * len(names), names, strict=False):
    x, y = _series(name, steps)
    marker = "o" if len(x) < 40 else None
    axes.plot(x, y, color=colour, marker=marker, markersize=3, label=name)
    bounds = _bounds(chart, y, steps)
    if bounds is not None:
      axes.fill_between(x, *bounds, color=colour, alpha=0.2, linewidth=0)
    positive |= bool((y > 0).any())
  if chart.logarithmic and positive:
    axes.set_yscale("log")
  axes.set_xlabel("step")
  axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
  return len(names)


def _series(
  name: str, steps: Mapping[int, Mapping[str, float]]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (steps, values) where a metric was logged; NaN where not finite."""
  points = [(s, values[name]) for s, values in steps.items() if name in values]
  x, y = np.array(points, np.float64).reshape(-1, 2).T
  return x, np.where(np.isfinite(y), y, np.nan)


def _bounds(
  chart: Chart, y: np.ndarray, steps: Mapping[int, Mapping[str, float]]
) -> tuple[np.ndarray, np.ndarray] | None:
  if chart.low is not None and chart.high is not None:
    low, high = _series(chart.low, steps)[1], _series(chart.high, steps)[1]
  elif chart.error is not None:
    error = _series(chart.error, steps)[1]
    if error.shape != y.shape:
      return None
    low, high = y - error, y + error
  else:
    return None
  return (low, high) if low.shape == high.shape == y.shape else None


def drawing_style(ink: str) -> Any:
  """Returns matplotlib's settings for a chart.

  Args:
    ink: colour of text and axes.
  """
  inked = (
    "text.color",
    "axes.labelcolor",
    "axes.edgecolor",
    "xtick.color",
    "ytick.color",
    "grid.color",
  )
  return dict.fromkeys(inked, ink) | {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "lines.linewidth": 1.4,
  }


def _completions(records: Sequence[Mapping[str, Any]]) -> str:
  steps = sorted({record["step"] for record in records})
  if not steps:
    return ""
  chosen = dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1]))
  parts = []
  for step in chosen:
    parts.append(f"<h3>Step {step}</h3>")
    parts.extend(_card(r) for r in records if r["step"] == step)
  return page.section("Sample completions", "\n".join(parts))


def _card(record: Mapping[str, Any]) -> str:
  reward = record.get("reward")
  worth = "not scored" if reward is None else f"reward {reward:.2f}"
  kind = "good" if reward is not None and reward > 0 else "bad"
  facts = [worth, f"ended by {record.get('finish_reason', 'unknown')}"]
  if record.get("answer") is not None:
    facts.append(f"answer {record['answer']}")
  return (
    f'<article class="{kind}"><header>{page.text(" · ".join(facts))}</header>'
    f"<pre>{page.text(record.get('prompt', ''))}</pre>"
    f"<pre>{page.text(record.get('completion', ''))}</pre></article>"
  )


def _settings(settings: Mapping[str, Any]) -> str:
  if not settings:
    return ""
  defaults = config.defaults()
  given = dict(config.flat(settings.get("config", {})))
  show = lambda value: json.dumps(value, ensure_ascii=False)
  rows = [(name, show(value)) for name, value in given.items()]
  changed = [row for row in rows if given[row[0]] != defaults.get(row[0])]
  versions = list(settings.get("versions", {}).items())
  head = ("setting", "value")
  return page.section(
    "Settings",
    page.table(head, changed)
    + page.folded("All settings", page.table(head, rows))
    + page.folded("Versions", page.table(("package", "version"), versions)),
  )
