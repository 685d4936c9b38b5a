"""The figure of experiments/studies/spoiled.py: accuracy by kind and share."""

from collections.abc import Mapping
from typing import Any

from bilevel_jax.reporting import charts

_TEST = "same kind"
_LINES = {
  "mixed, good ones alone": ("the good ones alone", "#666666", "--"),
  "bridge, demonstrations": ("BRIDGE, weights", "#0072B2", "-"),
  "bridge, adapter": ("BRIDGE, adapter", "#CC79A7", "-"),
  "mixed, right answers alone": ("mixed, answers checked", "#E69F00", "-"),
  "mixed": ("mixed", "#D55E00", "-"),
}


def picture(
  whole: Mapping[str, Any],
  kinds: Mapping[str, str],
  shares: tuple[float, ...],
  clean: str,
) -> Any:
  """Returns accuracies over the share that is spoiled, a panel for each kind.

  Args:
    whole: the study's results.
    kinds: of spoiled demonstrations, and what each is.
    clean: the regime in which none is.
  """
  import matplotlib
  from matplotlib import figure

  run = [
    kind
    for kind in kinds
    if any(_accuracy(whole, kind, share, "mixed", clean) for share in shares)
  ]
  with matplotlib.rc_context(
    charts.STYLE | {"font.size": 9, "grid.alpha": 0.2}
  ):
    rows, columns = -(-len(run) // 2), min(len(run), 2)
    drawing = figure.Figure(
      figsize=(max(4 * columns, 7), 0.8 + 2.6 * rows), layout="constrained"
    )
    panels = drawing.subplots(
      rows, columns, sharex=True, sharey=True, squeeze=False
    )
    for axes, kind in zip(panels.flat, run, strict=False):
      for arm, (label, colour, line) in _LINES.items():
        points = [
          (100 * share, found)
          for share in (0.0, *shares)
          if (found := _accuracy(whole, kind, share, arm, clean))
        ]
        if len(points) < 2:
          continue
        x, (middle, low, high) = (
          [share for share, _ in points],
          zip(*(found for _, found in points), strict=True),
        )
        style = {"color": colour, "linestyle": line, "marker": "o"}
        axes.plot(x, middle, markersize=3, label=label, **style)
        if None not in low:
          axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
      axes.set_title(kinds[kind], fontsize=9)
      axes.set_ylim(0, 1)
      axes.set_xticks([100 * share for share in (0.0, *shares)])
      axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    drawing.supxlabel("demonstrations that are spoiled, %", fontsize=9)
    drawing.supylabel("accuracy on held-out questions", fontsize=9)
    lines = {
      label: line
      for axes in panels.flat
      for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    drawing.legend(
      lines.values(), lines.keys(), loc="outside upper center", ncols=3
    )
  return drawing


def _accuracy(
  whole: Mapping[str, Any], kind: str, share: float, arm: str, clean: str
) -> list[float] | None:
  """Returns mean, low, high; None: not run. None is spoiled: as `mixed`."""
  name = f"{kind} {share:.0%}" if share else clean
  arms = whole["regimes"].get(name, {"arms": {}})["arms"]
  given = arms.get(arm)
  if given is None and arm.startswith("mixed, ") and not share:
    given = arms.get("mixed")
  return given["tests"][_TEST] if given and given["seeds"] else None
