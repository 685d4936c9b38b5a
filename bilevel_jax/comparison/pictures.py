"""Pictures of a comparison, by matplotlib."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bilevel_jax.comparison import figures
from bilevel_jax.comparison import runs as runs_lib

GAIN = "bilevel/cooperative_gain"
# Okabe and Ito's colours, which colour-blind readers tell apart, and more.
_COLOURS = (
  "#0072B2",
  "#D55E00",
  "#009E73",
  "#CC79A7",
  "#E69F00",
  "#56B4E9",
  "#7A5195",
  "#666666",
  "#8C564B",
  "#B5BD00",
)
_LINES = ("-", "--", ":")
_STYLE: Any = {
  "font.size": 9,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "grid.alpha": 0.2,
  "legend.frameon": False,
}
_SMOOTHED = 15  # points of a noisy curve that one shown point is the mean of


def draw(
  groups: Sequence[runs_lib.Group], summary: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns matplotlib figures by name; one with nothing to show is left out.

  Args:
    groups: of runs that differ by seed.
    summary: what `figures.summarise` returned for them.
  """
  # Imported here: whoever reads the numbers alone does not wait for it.
  import matplotlib

  with matplotlib.rc_context(_STYLE):
    made = {
      "accuracy": _curves(
        groups, figures.ACCURACY, "Accuracy on held-out questions"
      ),
      "final": _final(summary),
      "reward": _curves(
        groups, "rl/reward", "Mean reward of a step", smoothed=_SMOOTHED
      ),
      "gain": _gain(groups),
      "cost": _cost(summary),
    }
  return {name: picture for name, picture in made.items() if picture}


def _styles(names: Sequence[str]) -> dict[str, dict[str, str]]:
  return {
    name: {
      "color": _COLOURS[n % len(_COLOURS)],
      "linestyle": _LINES[n // len(_COLOURS) % len(_LINES)],
    }
    for n, name in enumerate(names)
  }


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
  groups: Sequence[runs_lib.Group],
  metric: str,
  title: str,
  smoothed: int = 1,
) -> Any:
  styles = _styles([group.name for group in groups])
  drawn = 0
  with _figure(len(runs_lib.AGAINST), 3.4) as picture:
    panels = picture.subplots(1, len(runs_lib.AGAINST), sharey=True)
    panels[0].set_ylabel(title)
    for axes, (against, (heading, unit, _)) in zip(
      panels, runs_lib.AGAINST.items(), strict=True
    ):
      for group in groups:
        found = figures.band(group, metric, against)
        # Where nothing was sampled there is no curve against tokens.
        if found is None or np.ptp(found[0]) == 0:
          continue
        _band(axes, found, smoothed, label=group.name, **styles[group.name])
        drawn += 1
      axes.set_xlabel(f"{heading} ({unit})" if unit == "s" else heading)
      if unit != "FLOPs":  # its numbers have an exponent
        axes.xaxis.set_major_formatter("{x:,.0f}")
      axes.xaxis.get_major_locator().set_params(nbins=5)
      axes.yaxis.set_major_formatter("{x:.2f}")
      if not axes.lines:
        axes.set_xticks([])
        middle = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(
          0.5, 0.5, "unknown, or no range\nthat all seeds share", **middle
        )
    _look_at_the_lines(panels)
  return picture if drawn else None


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


def _final(summary: Mapping[str, Any]) -> Any:
  rows = {
    name: row["accuracy"]
    for name, row in summary["groups"].items()
    if np.isfinite(row["accuracy"][0])
  }
  if not rows:
    return None
  styles = _styles(list(summary["groups"]))
  with _figure(1.3, 1.1 + 0.3 * len(rows), legend=False) as picture:
    axes = picture.subplots()
    for place, (name, (value, low, high)) in enumerate(rows.items()):
      colour = styles[name]["color"]
      axes.plot([low, high], [place, place], color=colour, linewidth=2)
      axes.plot(value, place, "o", color=colour)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("Final accuracy, 95% interval")
    axes.xaxis.set_major_formatter("{x:.2f}")
  return picture


def _gain(groups: Sequence[runs_lib.Group]) -> Any:
  styles = _styles([group.name for group in groups])
  drawn = 0
  with _figure(1.3, 3.2) as picture:
    axes = picture.subplots()
    axes.axhline(0, color="#888888", linewidth=1)
    for group in groups:
      found = figures.band(group, GAIN, "steps")
      if found is None:
        continue
      _band(axes, found, _SMOOTHED, label=group.name, **styles[group.name])
      drawn += 1
    _look_at_the_lines([axes])
    axes.set_xlabel("Steps")
    axes.set_ylabel("Cooperative gain (reward)")
  return picture if drawn else None


def _cost(summary: Mapping[str, Any]) -> Any:
  groups = summary["groups"]
  phases = list(next(iter(groups.values()))["cost"]["seconds"])
  with _figure(1.3, 1.3 + 0.3 * len(groups)) as picture:
    axes = picture.subplots()
    left = np.zeros(len(groups))
    for phase, colour in zip(phases, _COLOURS, strict=False):
      width = np.array([g["cost"]["seconds"][phase] for g in groups.values()])
      axes.barh(range(len(groups)), width, left=left, color=colour, label=phase)
      left += width
    axes.set_yticks(range(len(groups)), list(groups))
    axes.invert_yaxis()
    axes.set_xlabel("Training time of a run (s)")
  return picture


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
