"""Charts of one run: which metrics, and how they are plotted."""

import dataclasses
import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Chart:
  """A picture of one or several metrics over steps."""

  title: str
  unit: str
  pattern: str  # of the whole names of its metrics
  logarithmic: bool = False
  band: tuple[str, ...] = ()
  """Metrics around the one plotted: its bounds, or its standard error."""


CHARTS = (
  Chart("Reward", "mean of a step", r"rl/(reward|accuracy|pass_at_group)"),
  Chart(
    "Accuracy on held-out questions",
    "share correct, 95% interval",
    r"evaluation/accuracy",
    band=("evaluation/accuracy_low", "evaluation/accuracy_high"),
  ),
  Chart("SFT loss", "nats per token, as weighted", r"sft/loss"),
  Chart(
    "Cooperative gain",
    "reward over RL alone, ± 1 standard error",
    r"bilevel/cooperative_gain",
    band=("bilevel/cooperative_gain_se",),
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
STYLE: Any = {
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "legend.frameon": False,
}
_COLOURS = ("#3b82f6", "#ea7317", "#10a37f", "#d6409f", "#8e5cf0", "#a8841a")
_INK = "#123456"  # stands for the page's text colour in a drawing


def svg(chart: Chart, steps: Mapping[int, Mapping[str, float]]) -> str:
  """Returns a chart for a page, in the colour of its text.

  Args:
    steps: what was logged, by steps done; "" where no metric of the chart was.
  """
  # Imported here: a run does not wait for matplotlib before it starts.
  import matplotlib
  from matplotlib import figure

  out = io.StringIO()
  with matplotlib.rc_context(in_ink(_INK)):
    picture = figure.Figure(figsize=(4, 2.5), layout="constrained")
    lines = plot(picture.add_subplot(), chart, steps)
    if not lines:
      return ""
    if lines > 1:
      picture.legend(loc="outside lower center", ncols=2, fontsize=7)
    picture.savefig(
      out, format="svg", transparent=True, metadata={"Date": None}
    )
  drawing = out.getvalue()
  return drawing[drawing.index("<svg") :].replace(_INK, "currentColor")


def png(picture: Any, dpi: int) -> bytes:
  """Returns a figure of matplotlib as a file, the same for the same figure."""
  out = io.BytesIO()
  picture.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
  return out.getvalue()


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
  rows = [_series(name, steps)[1] for name in chart.band]
  if not rows or any(row.shape != y.shape for row in rows):
    return None
  return (rows[0], rows[1]) if rows[1:] else (y - rows[0], y + rows[0])


def in_ink(ink: str) -> Any:
  """Returns matplotlib's settings for charts whose text has this colour."""
  inked = (
    "text.color",
    "axes.labelcolor",
    "axes.edgecolor",
    "xtick.color",
    "ytick.color",
    "grid.color",
  )
  return (STYLE | dict.fromkeys(inked, ink)) | {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 8,
    "grid.alpha": 0.15,
    "lines.linewidth": 1.4,
  }
