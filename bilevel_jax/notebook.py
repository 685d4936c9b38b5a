"""A run as it goes, below a notebook's cell."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

from bilevel_jax import train
from bilevel_jax.training import display, report

CHARTS = (
  "Reward",
  "Accuracy on held-out questions",
  "SFT loss",
  "Cooperative gain",
)


class Live:
  """Curves and the latest completions of a run, drawn over in place."""

  def __init__(
    self,
    *,
    charts: Sequence[str] = CHARTS,
    every: int = 1,
    completions: int = 4,
  ) -> None:
    """Shows nothing yet.

    Args:
      charts: titles in `training.report.CHARTS`; one that has nothing to show
        is left out.
      completions: of a step, shown below the curves.
    """
    self._charts = [chart for chart in report.CHARTS if chart.title in charts]
    self._every, self._completions = every, completions
    self._begun = False
    self._curves = display.NotebookOutput()
    self._texts = display.NotebookOutput()

  def show(self, step: train.Step) -> None:
    """Draws what the run has logged so far, where that is due."""
    last = step.number == step.run.settings.steps
    if self._begun and not last and step.number % self._every:
      return
    self._begun = True
    drawn = picture(self._charts, report.logged(step.files.metrics))
    self._curves.write({"image/png": base64.b64encode(drawn).decode()})
    self._texts.write({"text/html": table(step, self._completions)})


def picture(
  charts: Sequence[report.Chart], steps: Mapping[int, Mapping[str, float]]
) -> bytes:
  """Returns a PNG of the charts that have something to show, side by side.

  Args:
    steps: what was logged, by steps done.
  """
  import matplotlib
  from matplotlib import figure

  out = io.BytesIO()
  with matplotlib.rc_context(report.drawing_style("#444444")):
    whole = figure.Figure(figsize=(11, 2.6), layout="constrained")
    panels = whole.subplots(1, len(charts), squeeze=False)[0]
    for axes, chart in zip(panels, charts, strict=True):
      lines = report.plot(axes, chart, steps)
      axes.set_title(chart.title, fontsize=9)
      if lines > 1:
        axes.legend(fontsize=6, frameon=False)
      if not lines:
        axes.remove()
    whole.savefig(out, format="png", dpi=90, metadata={"Software": None})
  return out.getvalue()


def table(step: train.Step, count: int) -> str:
  """Returns HTML of some completions of a step with their rewards.

  Args:
    count: rows, spread over the step.
  """
  every = max(1, len(step.completions) // count)
  rows = []
  for record in step.completions[::every][:count]:
    cells = [record["prompt"], record["completion"], record["answer"]]
    written = "".join(
      '<td style="text-align:left;white-space:pre-wrap">'
      f"{html.escape(display.escaped(str(cell)))}</td>"
      for cell in cells
    )
    reward = record["reward"]
    worth = "not scored" if reward is None else f"{reward:.2f}"
    rows.append(f"<tr>{written}<td>{worth}</td></tr>")
  if not rows:
    return ""
  heads = "".join(
    f"<th>{head}</th>" for head in ("prompt", "completion", "answer", "reward")
  )
  return (
    f"<p>step {step.number} of {step.run.settings.steps}</p>"
    f"<table><tr>{heads}</tr>{''.join(rows)}</table>"
  )
