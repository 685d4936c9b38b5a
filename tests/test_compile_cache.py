"""Compiled programs: kept where the user says, whatever was killed before."""

import os
import subprocess
import sys

import pytest

from tests import processes

_FIRST = "JAX_COMPILATION_CACHE_DIR"  # wins over the others
_WHERE = """
import jax
from bilevel_jax import compile_cache
compile_cache.enable()
print(jax.config.jax_compilation_cache_dir)
"""
_COMPILE = """
import jax
from bilevel_jax import compile_cache
compile_cache.enable()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x + 1)(1.0)
"""


def _output(program: str, **variables: str) -> str:
  return subprocess.run(
    [sys.executable, "-W", "error", "-c", program],
    cwd=processes.ROOT,
    env={name: os.environ[name] for name in os.environ if name != _FIRST}
    | variables,
    stdout=subprocess.PIPE,
    text=True,
    timeout=processes.PATIENCE_S,
    check=True,
  ).stdout.strip()


@pytest.mark.parametrize(
  ("variable", "expected"),
  [
    ("XDG_CACHE_HOME", "{}/bilevel_jax/programs"),
    (_FIRST, "{}"),
  ],
)
def test_programs_are_kept_where_the_environment_says(
  tmp_path, variable, expected
):
  where = _output(_WHERE, **{variable: str(tmp_path)})
  assert where == expected.format(tmp_path)


@pytest.mark.parametrize(
  ("variable", "place", "why"),
  [
    ("XDG_CACHE_HOME", "/dev/null", "Not a directory: '/dev/null/"),
    ("XDG_CACHE_HOME", "/proc/caches", "No such file or directory: '/proc/"),
    ("XDG_CACHE_HOME", "~nobody-of-that-name", "not determine home directory"),
    ("HOME", "/dev/null", "Not a directory: '/dev/null/.cache/"),
  ],
)
def test_without_a_place_for_the_cache_all_else_goes_on(variable, place, why):
  program = f"import sys; sys.stderr = sys.stdout{_WHERE}"
  unset = {"XDG_CACHE_HOME": ""}
  said, where = _output(program, **unset | {variable: place}).splitlines()
  assert said.startswith("no cache of compiled programs: ")
  assert why in said
  assert where == "None"


def test_an_entry_that_a_killed_run_left_unfinished_stops_no_later_one(
  tmp_path,
):
  programs = tmp_path / "bilevel_jax" / "programs"
  programs.mkdir(parents=True)
  (programs / "finished-cache").write_bytes(b"whole")
  (programs / "finished-atime").write_bytes(bytes(8))
  (programs / "killed-cache").write_bytes(b"cut sh")
  _output(_COMPILE, XDG_CACHE_HOME=str(tmp_path))
  left = {path.name for path in programs.glob("*-cache")}
  assert "finished-cache" in left
  assert "killed-cache" not in left
  assert len(left) > 1, "nothing was kept"


@pytest.mark.parametrize("module", ["evaluate", "generate"])
def test_what_reads_weights_keeps_its_programs_too(tmp_path, module):
  as_command = "import runpy; runpy.run_module('{}', run_name='__main__')"
  with pytest.raises(subprocess.CalledProcessError):  # no weights: it ends
    _output(
      as_command.format(f"bilevel_jax.{module}"), XDG_CACHE_HOME=str(tmp_path)
    )
  assert (tmp_path / "bilevel_jax" / "programs").is_dir()
