"""A notebook that nobody should see is refused, cell by cell."""

import pathlib

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

from tools import run_notebooks  # noqa: E402 -- it imports both

v4 = nbformat.v4
FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"


def _notebook(*outputs):
  return v4.new_notebook(cells=[v4.new_code_cell("1", outputs=list(outputs))])


def _stream(text, name="stdout"):
  return v4.new_output("stream", name=name, text=text)


def test_warnings_and_paths_of_this_machine_are_refused(tmp_path):
  def found(output):
    return run_notebooks.complaints(_notebook(output), tmp_path)

  assert found(_stream("12 of 40, runs/bridge, a/b")) == []
  assert "cell 0 writes to stderr: hot" in found(_stream("hot", "stderr"))[0]
  page = v4.new_output(
    "display_data", data={"text/html": f"<p>{tmp_path}/run</p>"}
  )
  for output in (page, _stream(str(pathlib.Path.home() / "x"))):
    assert "shows a path of this machine" in found(output)[0]


def test_a_cell_whose_kinds_of_outputs_have_changed_is_named():
  text, other = _notebook(_stream("1")), _notebook(_stream("2"))
  picture = _notebook(v4.new_output("display_data", data={"image/png": ""}))
  assert run_notebooks.differences(text, other) == []
  assert "cell 0" in run_notebooks.differences(_notebook(), text)[0]
  assert "image/png" in run_notebooks.differences(text, picture)[0]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=str)
def test_a_committed_notebook_has_outputs_and_nothing_else(path, tmp_path):
  notebook = nbformat.read(path, as_version=4)
  assert run_notebooks.complaints(notebook, tmp_path) == []
  shown = [o for cell in notebook.cells for o in cell.get("outputs", [])]
  assert any("image/png" in output.get("data", {}) for output in shown)
  assert not [o for o in shown if o.output_type == "error"]
  assert set(notebook.metadata) == {"kernelspec", "language_info"}
  first = notebook.cells[0].source
  assert f"OWNER/bilevel_jax/blob/main/notebooks/{path.name}" in first
