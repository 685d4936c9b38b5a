"""A run as it goes, below a notebook's cell."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from bilevel_jax.reporting import charts as charts_lib
from bilevel_jax.reporting import pages, terminal, text
from bilevel_jax.runs import records

CHARTS = (
  "Reward",
  "Accuracy on held-out questions",
  "SFT loss",
  "Cooperative gain",
)


class Live:
  """Curves and the latest completions of a run, plotted over in place."""

  def __init__(
    self,
    *,
    charts: Sequence[str] = CHARTS,
    every: int = 1,
    completions: int = 4,
  ) -> None:
    """Shows nothing yet.

    Args:
      charts: titles in `reporting.charts.CHARTS`; one that has nothing to show
        is left out.
      completions: of a step, shown below the curves.
    """
    self._charts = [c for c in charts_lib.CHARTS if c.title in charts]
    self._every, self._completions = every, completions
    self._shown = False
    self._curves = terminal.NotebookOutput()
    self._texts = terminal.NotebookOutput()

  def show(self, step: Any) -> None:
    """Draws what the run has logged so far, where that is due.

    Args:
      step: a `train.Step`, as `train.steps` hands it out.
    """
    last = step.number == step.run.settings.steps
    if self._shown and not last and step.number % self._every:
      return
    self._shown = True
    plotted = curves(self._charts, records.by_step(step.files.metrics))
    self._curves.write({"image/png": base64.b64encode(plotted).decode()})
    self._texts.write({"text/html": _table(step, self._completions)})


def curves(
  charts: Sequence[charts_lib.Chart], steps: Mapping[int, Mapping[str, float]]
) -> bytes:
  """Returns a PNG of the charts that have something to show, side by side.

  Args:
    steps: what was logged, by steps done.
  """
  import matplotlib
  from matplotlib import figure

  with matplotlib.rc_context(charts_lib.in_ink("#444444")):
    whole = figure.Figure(figsize=(11, 2.6), layout="constrained")
    panels = whole.subplots(1, len(charts), squeeze=False)[0]
    for axes, chart in zip(panels, charts, strict=True):
      lines = charts_lib.plot(axes, chart, steps)
      axes.set_title(chart.title, fontsize=9)
      if lines > 1:
        axes.legend(fontsize=6)
      if not lines:
        axes.remove()
    return charts_lib.png(whole, dpi=90)


def _table(step: Any, count: int) -> str:
  """Returns HTML of so many completions, spread over a step, with rewards."""
  every = max(1, len(step.completions) // count)
  shown = step.completions[::every][:count]
  if not shown:
    return ""
  rows = []
  for record in shown:
    cells = "".join(
      '<td style="text-align:left;white-space:pre-wrap">'
      f"{pages.escape(record[name])}</td>"
      for name in ("prompt", "completion", "answer")
    )
    worth = text.verdict(record)[0].removeprefix("reward ")
    rows.append(f"<tr>{cells}<td>{worth}</td></tr>")
  heads = "<th>prompt</th><th>completion</th><th>answer</th><th>reward</th>"
  return (
    f"<p>step {step.number} of {step.run.settings.steps}</p>"
    f"<table><tr>{heads}</tr>{''.join(rows)}</table>"
  )
