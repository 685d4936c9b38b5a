"""Runs the notebooks from top to bottom, and keeps what they show.

    python tools/run_notebooks.py            # outputs go into the files
    python tools/run_notebooks.py --check    # the files stay as they are

Each runs in an empty directory. Errors fail, and so do warnings and whatever
else goes to stderr, and outputs that hold a path of this machine; with --check
also a file whose cells do not have the kinds of outputs that they have now.
Needs the extra `notebooks`.
"""

import getpass
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import nbclient
import nbformat

from bilevel_jax import command_line

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
_TIMEOUT_S = 900  # of a cell
_METADATA = {
  "kernelspec": {
    "display_name": "Python 3",
    "language": "python",
    "name": "python3",
  },
  "language_info": {"name": "python"},
}


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, or 1 where a notebook is not as it should be."""
  parser = command_line.Parser("python tools/run_notebooks.py", __doc__)
  parser.add_argument(
    "notebooks", nargs="*", type=pathlib.Path, metavar="NOTEBOOK"
  )
  parser.add_argument(
    "--check", action="store_true", help="run, compare, and write nothing"
  )
  chosen = parser.parse_args(arguments)
  for path in chosen.notebooks:
    try:
      nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises many unrelated kinds
      parser.error(f"{path} must be a notebook, got: {error}")
  failed = False
  for path in chosen.notebooks or sorted(FOLDER.glob("*.ipynb")):
    started = time.monotonic()
    before = nbformat.read(path, as_version=4)
    after = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as scratch:
      complaints = run(after, pathlib.Path(scratch))
    if chosen.check and not complaints:
      complaints = differences(before, after)
    if not chosen.check and not complaints:
      nbformat.write(after, path)
    seconds = time.monotonic() - started
    print(f"{path.name}: {'failed' if complaints else 'ok'}, {seconds:.0f} s")
    for complaint in complaints:
      print(f"  {complaint}", file=sys.stderr)
    failed |= bool(complaints)
  return int(failed)


def run(notebook: Any, directory: pathlib.Path) -> list[str]:
  """Returns what is wrong with a notebook after running it, in place.

  Args:
    notebook: of nbformat; gets its outputs, less what differs by machine.
    directory: an empty one to run in.
  """
  client = nbclient.NotebookClient(
    notebook,
    timeout=_TIMEOUT_S,
    kernel_name="python3",
    resources={"metadata": {"path": str(directory)}},
    coalesce_streams=True,
  )
  try:
    client.execute()
  except nbclient.exceptions.CellExecutionError as error:
    return [str(error)]
  notebook.metadata = nbformat.from_dict(_METADATA)
  for cell in notebook.cells:
    cell.metadata.pop("execution", None)
  return complaints(notebook, directory)


def complaints(notebook: Any, directory: pathlib.Path) -> list[str]:
  """Returns a sentence for each output that nobody should see.

  Args:
    notebook: of nbformat, with outputs.
    directory: that it ran in.
  """
  own = {
    str(directory),
    tempfile.gettempdir() + "/",
    str(pathlib.Path.home()) + "/",
    str(FOLDER.parent) + "/",
    sys.prefix,
    f"/{getpass.getuser()}/",
  }
  found = []
  for number, cell in enumerate(notebook.cells):
    for output in cell.get("outputs", []):
      if output.get("name") == "stderr":
        found.append(f"cell {number} writes to stderr: {output.text}")
      for text in _texts(output):
        found += [
          f"cell {number} shows a path of this machine, {place}: {text}"
          for place in own
          if place in text
        ]
  return found


def differences(before: Any, after: Any) -> list[str]:
  """Returns a sentence for each cell whose kinds of outputs have changed.

  Args:
    before: of nbformat, as it is in the file.
    after: the same notebook, run again.
  """
  return [
    f"cell {number} shows {_kinds(new)}, its file has {_kinds(old)}: run "
    "tools/run_notebooks.py"
    for number, (old, new) in enumerate(
      zip(before.cells, after.cells, strict=True)
    )
    if _kinds(old) != _kinds(new)
  ]


def _kinds(cell: Any) -> list[str]:
  kinds = []
  for output in cell.get("outputs", []):
    kinds += sorted(output.get("data", {output.output_type: None}))
  return kinds


def _texts(output: Any) -> list[str]:
  texts = [output.get("text", "")]
  for kind, content in output.get("data", {}).items():
    if kind.startswith("text/"):
      texts.append(content)
  return texts


if __name__ == "__main__":
  sys.exit(main())
