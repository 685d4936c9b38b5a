"""The plan of a run from the command line, without weights."""

import subprocess
import sys

import pytest

from tests import processes


def plan(*arguments):
  return subprocess.run(
    [sys.executable, "tools/plan_memory.py", *arguments],
    cwd=processes.ROOT,
    capture_output=True,
    text=True,
    timeout=processes.PATIENCE_S,
  )


@pytest.mark.parametrize("name", ["qwen25_3b_limr", "qwen3_8b_math"])
def test_the_papers_runs_fit_eight_devices(name):
  said = plan(
    f"--config=configs/bridge_{name}.py", "--devices=8", "--memory=80GB"
  )
  assert said.returncode == 0, said.stderr
  for term in ("fsdp 8", "RL-only base", "KV cache", "log-prob chunk"):
    assert term in said.stdout


def test_what_does_not_fit_is_refused_with_the_table():
  said = plan(
    "--config=configs/bridge_qwen3_8b_math.py", "--devices=1", "--memory=80GB"
  )
  assert said.returncode == 2
  assert "optimiser states" in said.stderr
