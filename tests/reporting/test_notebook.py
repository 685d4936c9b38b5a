"""What a notebook's cell shows of a run is one drawing, written over."""

import base64
import io
import json
import sys
import types

import matplotlib.image
import numpy as np
import pytest
import rich.console

from bilevel_jax import config
from bilevel_jax.reporting import charts as charts_lib
from bilevel_jax.reporting import notebook, terminal


class _Cell(types.ModuleType):
  """Stands for IPython.display: keeps what is below the cell."""

  def __init__(self):
    super().__init__("IPython.display")
    self.shown = []

  def display(self, content, *, display_id, raw):
    assert display_id
    assert raw
    self.shown.append(content)
    place = len(self.shown) - 1

    def update(content, raw):
      assert raw
      self.shown[place] = content

    return types.SimpleNamespace(update=update)


@pytest.fixture
def cell(monkeypatch):
  package, cell = types.ModuleType("IPython"), _Cell()
  package.version_info = (9, 0)  # which matplotlib reads
  monkeypatch.setitem(sys.modules, "IPython", package)
  monkeypatch.setitem(sys.modules, "IPython.display", cell)
  return cell


def _step(directory, number, reward=0.5, completion="4"):
  record = {
    "prompt": "2+2",
    "completion": completion,
    "answer": "4",
    "reward": reward,
  }
  path = directory / "metrics.jsonl"
  with path.open("a") as file:
    file.write(json.dumps({"step": number, "rl/reward": 0.5}) + "\n")
  return types.SimpleNamespace(
    number=number,
    files=types.SimpleNamespace(metrics=path),
    completions=[record] * 8,
    run=types.SimpleNamespace(settings=types.SimpleNamespace(steps=5)),
  )


def test_steps_are_plotted_over_the_first_one_when_due_and_at_the_end(
  cell, tmp_path
):
  live = notebook.Live(every=2, completions=3)
  seen = []
  for number in range(1, 6):
    live.show(_step(tmp_path, number))
    curves, texts = cell.shown
    assert base64.b64decode(curves["image/png"]).startswith(b"\x89PNG")
    seen.append(texts["text/html"].split("</p>")[0])
  assert seen == [f"<p>step {n} of 5" for n in (1, 2, 2, 4, 5)]
  assert texts["text/html"].count("<td>0.50</td>") == 3


def test_a_picture_has_ink_where_there_is_something_to_show():
  """Left the reward, right nothing: no metric of that chart was logged."""
  charts = [c for c in charts_lib.CHARTS if c.title in ("Reward", "SFT loss")]
  steps = {n: {"rl/reward": 0.1 * n} for n in range(5)}
  plotted = matplotlib.image.imread(io.BytesIO(notebook.curves(charts, steps)))
  dark = (plotted[..., :3].min(-1) < 0.9).sum(0)
  half = len(dark) // 2
  assert dark[:half].sum() > 500
  assert dark[-half // 2 :].sum() == 0
  assert np.isfinite(plotted).all()


def test_nothing_in_a_completion_is_obeyed(cell, tmp_path):
  live = notebook.Live()
  live.show(_step(tmp_path, 1, reward=None, completion="<b>\x1b[31m4"))
  assert "&lt;b&gt;\\x1b[31m4" in cell.shown[1]["text/html"]
  assert "not scored" in cell.shown[1]["text/html"]


def test_a_run_in_a_notebook_has_one_line_for_all_steps(cell):
  out = io.StringIO()
  console = rich.console.Console(file=out, force_jupyter=True)
  with terminal.Display(9, 0, config.Logging(), console=console) as screen:
    for step in (1, 2):
      screen.step(step, {"rl/reward": 0.5})
  (line,) = cell.shown
  assert line["text/plain"].startswith("step 2/9  reward 0.500")
  assert out.getvalue() == ""
