"""What cannot be used is refused in a sentence, by every program.

The tables are tests/bad_input/*.txt. `$ PROGRAM ARGUMENTS` is a command, and
the lines below it are what its answer contains; `$$` has it run as a process of
its own as well. `< NAME`, lines and `>` are a file that commands name. Each
must end with exit code 2 and at most six lines, and start nothing.
"""

import concurrent.futures
import contextlib
import io
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from absl.testing import flagsaver

from bilevel_jax import compile_cache, evaluate, generate, main, rank
from bilevel_jax.rollout import engine
from bilevel_jax.training import step
from experiments import study
from tests import processes, tiny_run
from tools import (
  compare_runs,
  convert_weights,
  draw_run,
  fetch_smollm2,
  make_arithmetic_policy,
  plan_memory,
  run_notebooks,
)

TABLES = sorted((processes.ROOT / "tests" / "bad_input").glob("*.txt"))
PROGRAMS = {
  "main": lambda _: main.run(),
  "rank": lambda _: rank.rank(),
  "plan_memory": lambda _: main.run(plan_memory.report),
  "generate": generate.main,
  "evaluate": evaluate.main,
  "study": study.main,
  "compare_runs": compare_runs.main,
  "convert_weights": convert_weights.main,
  "draw_run": draw_run.main,
  "fetch_smollm2": fetch_smollm2.main,
  "make_arithmetic_policy": make_arithmetic_policy.main,
  "run_notebooks": run_notebooks.main,
}
MOST_LINES = 6
DEADLINE_S = 120  # of one that takes a second where nothing else runs


class Case(NamedTuple):
  """A command, and what its answer contains."""

  command: list[str]
  phrases: list[str]
  as_process: bool


class Table(NamedTuple):
  """Commands, and the files that they name."""

  files: dict[str, str]
  cases: list[Case]


class Accepted(BaseException):
  """A command was about to compute, or to fetch something."""


class Late(BaseException):
  """A command has not ended by its deadline."""


def read(path: pathlib.Path) -> Table:
  """Returns the table in a file."""
  table = Table({}, [])
  lines = iter(path.read_text().splitlines())
  for line in lines:
    if line.startswith("< "):
      content = "".join(f"{text}\n" for text in iter(lines.__next__, ">"))
      table.files[line[2:]] = content
    elif line.startswith("$"):
      mark, _, command = line.partition(" ")
      table.cases.append(Case(shlex.split(command), [], mark == "$$"))
    elif line and not line.startswith("#"):
      table.cases[-1].phrases.append(line)
  return table


@pytest.fixture
def laid_out(tmp_path, monkeypatch):
  """Writes the files of a table beside a tiny policy; they are found there."""
  tiny_run.weights(tmp_path)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))

  def lay_out(table: Table) -> pathlib.Path:
    for name, content in table.files.items():
      path = tmp_path / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(content)
    return tmp_path

  return lay_out


@pytest.fixture
def nothing_starts(monkeypatch):
  """Whatever would compute or fetch says that it was reached."""

  def reached(*args, **kwargs):
    raise Accepted

  monkeypatch.setattr(step, "run_step", reached)
  monkeypatch.setattr(engine, "_Settings", reached)
  monkeypatch.setattr(fetch_smollm2, "download", reached)
  monkeypatch.setattr(run_notebooks, "run", reached)
  monkeypatch.setattr(compile_cache, "enable", lambda: None)
  # JAX has started already: nothing is to be joined.
  monkeypatch.setenv("SLURM_NTASKS", "1")


@contextlib.contextmanager
def _as_it_was(directory: pathlib.Path) -> Iterator[None]:
  """Removes the files and the modules that a command leaves."""
  files, modules = set(directory.iterdir()), set(sys.modules)
  path, arguments = [*sys.path], sys.argv
  try:
    yield
  finally:
    sys.path[:], sys.argv = path, arguments
    for new in set(directory.iterdir()) - files:
      shutil.rmtree(new) if new.is_dir() else new.unlink()
    for name in set(sys.modules) - modules:
      file = str(getattr(sys.modules[name], "__file__", None))
      if not os.path.isabs(file) or file.startswith(str(directory)):
        del sys.modules[name]


def _answer(command: list[str]) -> tuple[object, str]:
  """Runs a command in this process; returns exit code and output."""
  name, *arguments = command
  said = io.StringIO()
  code: object = None

  def late(*_):
    raise Late

  previous = signal.signal(signal.SIGALRM, late)
  signal.alarm(DEADLINE_S)
  try:
    with (
      flagsaver.flagsaver(),
      contextlib.redirect_stdout(said),
      contextlib.redirect_stderr(said),
    ):
      sys.argv = command
      code = PROGRAMS[name](arguments)
  except SystemExit as ended:
    code = ended.code
  except BaseException as error:
    said.write("".join(traceback.format_exception(error)[-3:]))
    code = type(error).__name__
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)
  return code, said.getvalue()


def _complaint(case: Case, code: object, said: str) -> str | None:
  lines = said.strip().splitlines()
  if (
    code == 2
    and len(lines) <= MOST_LINES
    and "Traceback" not in said
    and case.phrases
    and all(phrase in said for phrase in case.phrases)
  ):
    return None
  return f"$ {shlex.join(case.command)}\n  {code}: {said.strip()[-600:]}"


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_bad_input_is_refused_in_a_sentence(path, laid_out):
  table = read(path)
  directory = laid_out(table)
  complaints = []
  for case in table.cases:
    with _as_it_was(directory):
      complaints.append(_complaint(case, *_answer(case.command)))
  found = [complaint for complaint in complaints if complaint]
  assert not found, "\n".join([f"{len(found)} of {len(complaints)}", *found])


def test_there_are_as_many_cases_as_promised():
  cases = [case for path in TABLES for case in read(path).cases]
  assert len({tuple(case.command) for case in cases}) == len(cases) >= 400
  assert sum(case.as_process for case in cases) >= 30
  assert {case.command[0] for case in cases} == PROGRAMS.keys()


def _process(case: Case) -> str | None:
  name, *arguments = case.command
  program = ["-m", f"bilevel_jax.{name}"]
  for folder in ("tools", "experiments"):
    if (script := processes.ROOT / folder / f"{name}.py").exists():
      program = [str(script)]
  done = subprocess.run(
    [sys.executable, *program, *arguments],
    env=os.environ | {"PYTHONPATH": str(processes.ROOT)},
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=processes.PATIENCE_S,
    check=False,
  )
  return _complaint(case, done.returncode, done.stdout + done.stderr)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_so_is_that_of_a_process(path, laid_out):
  table = read(path)
  laid_out(table)
  chosen = [case for case in table.cases if case.as_process]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    found = [complaint for complaint in pool.map(_process, chosen) if complaint]
  assert not found, "\n".join(found)
