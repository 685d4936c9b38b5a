"""What the pages of docs/ ask a reader to write and run is written and run."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from bilevel_jax import config
from tests import processes

DOCS = processes.ROOT / "docs"
FIRST = DOCS / "index.md"
PAGES = (FIRST, *sorted((DOCS / "how_to").glob("*.md")))
FENCE = re.compile(
  r"(?:<!-- (\w+) -->\n)?```\w+([^\n]*)\n(.*?)```\n", re.DOTALL
)
SMALL = (  # in place of what makes a run worth its time
  "--config.steps=2",
  "--config.data.prompts_per_step=2",
  "--config.data.demonstrations_per_step=2",
  "--config.data.evaluation.count=2",
  "--config.rollout.max_new_tokens=8",
  "--config.training.micro_batch_tokens=512",
  "--config.mesh.fsdp=1",
  "--config.checkpoints.export=False",
)


def _blocks(page: pathlib.Path, mark: str) -> list[str]:
  return [
    code
    for marked, _, code in FENCE.findall(page.read_text())
    if marked == mark
  ]


def _files(page: pathlib.Path) -> dict[str, str]:
  return {
    named[1]: code
    for _, options, code in FENCE.findall(page.read_text())
    if (named := re.search(r'title="([^"]+)"', options))
  }


@pytest.fixture
def desk(tmp_path, monkeypatch):
  """A directory with the files that a page and the first one are to write."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  before = set(sys.modules)

  def write(page):
    for name, text in (_files(FIRST) | _files(page)).items():
      (tmp_path / name).write_text(text)
    return tmp_path

  yield write
  for name in set(sys.modules) - before:
    file = getattr(sys.modules[name], "__file__", None) or ""
    if file.startswith(str(tmp_path)):
      del sys.modules[name]


def _pages_with(mark: str) -> list[pathlib.Path]:
  return [page for page in PAGES if _blocks(page, mark)]


@pytest.mark.parametrize(
  "page", [p for p in PAGES if _files(p)], ids=lambda page: page.stem
)
def test_every_config_file_of_a_page_parses(page, desk):
  for file in desk(page).glob("*.py"):
    names = {}
    exec(compile(file.read_text(), file, "exec"), names)
    if "get_config" in names:
      config.parse(names["get_config"]())


@pytest.mark.parametrize(
  "page", _pages_with("runs"), ids=lambda page: page.stem
)
def test_python_of_a_page_runs(page, desk, capsys):
  run = desk(page) / "runs" / "mine"
  run.mkdir(parents=True)
  (run / "metrics.jsonl").write_text('{"step": 1, "rl/reward": 0.5}\n')
  for code in _blocks(page, "runs"):
    exec(compile(code, page, "exec"), {})
  assert capsys.readouterr().out


@pytest.mark.parametrize(
  ("page", "command"),
  [(page, c) for page in PAGES for c in _blocks(page, "trains")],
  ids=lambda value: value.stem if isinstance(value, pathlib.Path) else None,
)
def test_a_run_that_a_page_asks_for_trains(page, command, desk):
  directory = desk(page)
  program, *arguments = shlex.split(command)
  assert program == "python"
  done = subprocess.run(
    [sys.executable, *arguments, *SMALL],
    cwd=directory,
    env=os.environ | {"PYTHONPATH": str(processes.ROOT)},
    capture_output=True,
    text=True,
    timeout=processes.PATIENCE_S,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  (run,) = (directory / "runs").iterdir()
  assert '"step": 2' in (run / "metrics.jsonl").read_text()
