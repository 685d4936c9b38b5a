"""Charts of a comparison, by matplotlib."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bilevel_jax.reporting import charts, comparison
from bilevel_jax.reporting.groups import Group

# What the learning curves are plotted against: heading, format of its numbers.
_AGAINST = {
  "steps": ("Steps", "{x:,.0f}"),
  "tokens": ("Sampled tokens", "{x:,.0f}"),
  "flops": ("Updates' operations", None),  # its numbers have an exponent
  "seconds": ("Training time (s)", "{x:,.0f}"),
}
# Okabe and Ito's colours, which colour-blind readers distinguish, and more.
_COLOURS = (
  *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
  *("#56B4E9", "#7A5195", "#666666", "#8C564B", "#B5BD00"),
)
_LINES = ("-", "--", ":")
_SMOOTHED = 15  # points of a noisy curve that one shown point is the mean of


def draw_comparison(
  groups: Sequence[Group], summary: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns matplotlib figures by name; one with nothing to show is left out.

  Args:
    summary: what `comparison.compare_groups` returned for them.
  """
  # Imported here: whoever reads the numbers alone does not wait for it.
  import matplotlib

  styles = {
    name: {
      "color": _COLOURS[n % len(_COLOURS)],
      "linestyle": _LINES[n // len(_COLOURS) % len(_LINES)],
    }
    for n, name in enumerate(summary["groups"])
  }
  with matplotlib.rc_context(
    charts.STYLE | {"font.size": 9, "grid.alpha": 0.2}
  ):
    made = {
      "accuracy": _curves(
        groups, styles, comparison.ACCURACY, "Accuracy on held-out questions"
      ),
      "final": _final(summary, styles),
      "reward": _curves(
        groups, styles, "rl/reward", "Mean reward of a step", _SMOOTHED
      ),
      "gain": _gain(groups, styles),
      "cost": _cost(summary),
    }
  return {name: picture for name, picture in made.items() if picture}


@contextlib.contextmanager
def _figure(
  columns: float, height: float, legend: bool = True
) -> Iterator[Any]:
  from matplotlib import figure

  picture = figure.Figure(
    figsize=(3.6 * columns + 0.6, height), layout="constrained"
  )
  yield picture
  found = {}
  for axes in picture.axes:
    handles, labels = axes.get_legend_handles_labels()
    found |= dict(zip(labels, handles, strict=True))
  if legend and len(found) > 1:
    picture.legend(
      list(found.values()),
      list(found),
      loc="outside lower center",
      ncols=max(1, int(55 * columns / (max(map(len, found)) + 8))),
      fontsize=8,
    )


def _curves(
  groups: Sequence[Group],
  styles: Mapping[str, Any],
  metric: str,
  title: str,
  smoothed: int = 1,
) -> Any:
  with _figure(len(_AGAINST), 3.4) as picture:
    panels = picture.subplots(1, len(_AGAINST), sharey=True)
    panels[0].set_ylabel(title)
    for axes, against in zip(panels, _AGAINST, strict=True):
      heading, numbers = _AGAINST[against]
      for group in groups:
        found = comparison.seed_band(group, metric, against)
        # Where nothing was sampled there is no curve against tokens.
        if found is not None and np.ptp(found[0]) > 0:
          _band(axes, found, smoothed, label=group.name, **styles[group.name])
      axes.set_xlabel(heading)
      if numbers:
        axes.xaxis.set_major_formatter(numbers)
      axes.xaxis.get_major_locator().set_params(nbins=5)
      axes.yaxis.set_major_formatter("{x:.2f}")
      if not axes.lines:
        axes.set_xticks([])
        middle = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(
          0.5, 0.5, "unknown, or no range\nthat all seeds share", **middle
        )
    _look_at_the_lines(panels)
  return picture if any(axes.lines for axes in panels) else None


def _band(axes: Any, found: Any, smoothed: int, **style: Any) -> None:
  x, *rows = found
  mean, low, high = (_smooth(row, smoothed) for row in rows)
  axes.plot(x, mean, marker="o" if len(x) <= 12 else None, ms=3, **style)
  axes.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)


def _look_at_the_lines(panels: Sequence[Any]) -> None:
  """Cuts bands that are far wider than the lines lie apart, as of two seeds.

  Args:
    panels: axes that share their y.
  """
  heights = [line.get_ydata() for axes in panels for line in axes.lines]
  if heights:
    low, high = np.min(np.hstack(heights)), np.max(np.hstack(heights))
    margin = 0.3 * (high - low) or 0.1
    panels[0].set_ylim(low - margin, high + margin)


def _final(summary: Mapping[str, Any], styles: Mapping[str, Any]) -> Any:
  rows = {
    name: row["accuracy"]
    for name, row in summary["groups"].items()
    if np.isfinite(row["accuracy"][0])
  }
  if not rows:
    return None
  with _figure(1.3, 1.1 + 0.3 * len(rows), legend=False) as picture:
    axes = picture.subplots()
    for place, (name, (value, low, high)) in enumerate(rows.items()):
      colour = styles[name]["color"]
      axes.plot([low, high], [place, place], color=colour, linewidth=2)
      axes.plot(value, place, "o", color=colour)
    _name_rows(axes, rows, "Final accuracy, 95% interval")
    axes.xaxis.set_major_formatter("{x:.2f}")
  return picture


def _gain(groups: Sequence[Group], styles: Mapping[str, Any]) -> Any:
  with _figure(1.3, 3.2) as picture:
    axes = picture.subplots()
    axes.axhline(0, color="#888888", linewidth=1)
    for group in groups:
      found = comparison.seed_band(group, "bilevel/cooperative_gain", "steps")
      if found is not None:
        _band(axes, found, _SMOOTHED, label=group.name, **styles[group.name])
    _look_at_the_lines([axes])
    axes.set_xlabel("Steps")
    axes.set_ylabel("Cooperative gain (reward)")
  return picture if len(axes.lines) > 1 else None


def _cost(summary: Mapping[str, Any]) -> Any:
  names = list(summary["groups"])
  seconds = [row["cost"]["seconds"] for row in summary["groups"].values()]
  with _figure(1.3, 1.3 + 0.3 * len(names)) as picture:
    axes = picture.subplots()
    left = np.zeros(len(names))
    for phase, colour in zip(seconds[0], _COLOURS, strict=False):
      width = np.array([each[phase] for each in seconds])
      axes.barh(range(len(names)), width, left=left, color=colour, label=phase)
      left += width
    _name_rows(axes, names, "Training time of a run (s)")
  return picture


def _name_rows(axes: Any, names: Iterable[str], heading: str) -> None:
  names = list(names)
  axes.set_yticks(range(len(names)), names)
  axes.invert_yaxis()
  axes.set_xlabel(heading)


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
  """Returns centred means of up to `width` points, fewer for short curves."""
  width = min(width, max(1, len(values) // 8))
  before, after = (width - 1) // 2, width // 2
  return np.array(
    [
      values[max(0, n - before) : n + after + 1].mean()
      for n in range(len(values))
    ]
  )
