"""Killed at random moments and resumed, a run ends with the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time

from tests import processes, tiny_run

STEPS = 20
KILLS = int(os.environ.get("BILEVEL_JAX_TEST_KILLS", "2"))
_PROGRAM = """
import sys
from bilevel_jax import config, train
from tests import tiny_run
import pathlib
c = tiny_run.settings(pathlib.Path(sys.argv[1]), sys.argv[2])
c.steps = int(sys.argv[3])
c.resume = sys.argv[4] == "resume"
train.run(config.parse(c))
"""


def _start(directory, run_dir, resume):
  environment = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(directory / "cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PLATFORMS": "cpu",
  }
  arguments = [str(directory), run_dir, str(STEPS), "resume" if resume else "-"]
  return subprocess.Popen(
    [sys.executable, "-c", _PROGRAM, *arguments],
    cwd=processes.ROOT,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def _finish(process):
  _, said = process.communicate(timeout=processes.PATIENCE_S)
  assert process.returncode == 0, said[-3000:]


def _steps_logged(path) -> int:
  return path.read_text().count("\n") if path.exists() else 0


def _weights(directory, run_dir) -> bytes:
  return (directory / run_dir / "export" / "model.safetensors").read_bytes()


def test_kills_at_random_moments_change_no_bit(tmp_path):
  """A checkpoint a step: many of the moments are in the midst of a save."""
  tiny_run.weights(tmp_path)
  _finish(_start(tmp_path, "whole", resume=False))
  *_, last = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
  step_s = json.loads(last)["time/step_s"]
  chance = random.Random(0)
  log = tmp_path / "killed" / "metrics.jsonl"
  for kill in range(KILLS):
    seen = _steps_logged(log)
    process = _start(tmp_path, "killed", resume=kill > 0)
    deadline = time.monotonic() + processes.PATIENCE_S
    # Once it has gone on, any moment of two steps.
    while _steps_logged(log) <= seen and process.poll() is None:
      assert time.monotonic() < deadline
      time.sleep(0.01)
    time.sleep(chance.uniform(0.0, 2.0) * step_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  _finish(_start(tmp_path, "killed", resume=True))
  assert _weights(tmp_path, "killed") == _weights(tmp_path, "whole")
  assert tiny_run.logged(tmp_path / "killed") == tiny_run.logged(
    tmp_path / "whole"
  )
