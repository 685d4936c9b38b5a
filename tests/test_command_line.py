"""What the programs do with streams that take no text, or not all of it."""

import os
import subprocess
import sys

import pytest

from tests import processes

_SHOW = """
import sys
from bilevel_jax import command_line, config
from bilevel_jax.reporting import terminal
command_line.show_any_text()
with terminal.Display(2, 0, config.Logging()) as screen:
  screen.note("7 \\u2264 8 \\u65e5")
  sys.stdin.read()
  row = {"prompt": "\\xe9", "completion": "", "reward": 1.0}
  screen.completions(1, [row | {"finish_reason": "stop"}])
  screen.step(1, {"rl/reward": 1.0})
print("at the end")
sys.stderr.write("went on")
"""
_PRINT = """
import sys
from bilevel_jax import command_line
def work():
  while True:
    print("x" * 1000, flush=True)
sys.exit(command_line.exit_code(work))
"""
_PRINT_AT_THE_END = """
import sys
from bilevel_jax import command_line
sys.exit(command_line.exit_code(lambda: (sys.stdin.read(), print("x"))))
"""


def _start(program, output=subprocess.PIPE, **variables):
  return subprocess.Popen(
    [sys.executable, "-c", program],
    cwd=processes.ROOT,
    env=os.environ | variables,
    stdin=subprocess.PIPE,
    stdout=output,
    stderr=subprocess.PIPE,
  )


@pytest.mark.parametrize(
  "variables",
  [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
  ],
)
def test_text_that_a_stream_lacks_is_escaped(variables):
  said, complaint = _start(_SHOW, **variables).communicate()
  assert complaint == b"went on"
  lines = said.decode("ascii").splitlines()
  assert lines[0] == "7 \\u2264 8 \\u65e5"
  assert "prompt      \\xe9" in said.decode()
  assert lines[-1] == "at the end"


def test_a_run_goes_on_when_nobody_reads_its_screen():
  process = _start(_SHOW)
  assert process.stdout.readline() == "7 \u2264 8 \u65e5\n".encode()
  process.stdout.close()
  process.stdout = None
  _, complaint = process.communicate()
  assert (process.returncode, complaint) == (0, b"went on")


@pytest.mark.parametrize("full", ["/dev/full"])
def test_a_run_goes_on_when_its_screen_is_a_full_disk(full):
  with open(full, "wb") as file:
    process = _start(_SHOW, file)
  _, complaint = process.communicate()
  assert (process.returncode, complaint) == (0, b"went on")


@pytest.mark.parametrize("program", [_PRINT, _PRINT_AT_THE_END])
def test_a_command_ends_quietly_when_nobody_reads_it(program):
  process = _start(program)
  if program == _PRINT:
    assert process.stdout.readline() == b"x" * 1000 + b"\n"
  process.stdout.close()
  process.stdout = None
  _, complaint = process.communicate()
  assert (process.returncode, complaint) == (141, b"")
