"""Two processes of two devices train as one process does, and share its work.

They go through the real command, over loopback.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import safetensors.numpy

from bilevel_jax import config, train
from tests import counted, processes, tiny_run

STEPS = 16
COMPLETIONS = 8  # of a step
_WEIGHTS = {
  "steps": 6,
  "method.bridge.upper": "demonstrations",
  "method.bridge.own_rate": 40.0,
}
_CONFIG = """
import pathlib
from tests import test_train_in_processes
def get_config():
  directory = pathlib.Path(__file__).parent
  return test_train_in_processes.settings(directory, "pair")
"""


def settings(directory, run_dir):
  """Returns a short run, without an optimiser that divides by rounding."""
  c = tiny_run.settings(directory, run_dir)
  c.steps = STEPS
  c.mesh.fsdp = None
  c.reward.verifiers = ("tests.counted.digits",)
  c.data.prompts_per_step = 2
  c.rollout.max_new_tokens = 4
  for group in (c.optimizer.base, c.optimizer.adapter):
    group.name = "sgd"
    group.learning_rate = 0.05
  return c


class _Pair:
  """Two processes of one run, with their devices, until the block ends."""

  def __init__(self, directory, *, launcher, resume=False):
    self._log = directory / "pair" / "metrics.jsonl"
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "2",
    }
    command = [
      *(sys.executable, "-m", "bilevel_jax.main"),
      *("--config", str(directory / "config.py")),
      f"--config.resume={resume}",
    ]
    self._ends = contextlib.ExitStack()
    port = self._ends.enter_context(processes.own_port())
    self.members = []
    for index in range(2):
      flags, variables = launcher(index, port)
      self.members.append(
        subprocess.Popen(
          [*command, *flags],
          cwd=processes.ROOT,
          env=environment
          | {counted.FILE: str(directory / f"calls-{index}")}
          | variables,
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
        )
      )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for member in self.members:
      member.kill()
      member.communicate()
    self._ends.close()

  def steps(self) -> int:
    """The steps that are logged; -1 before all of them."""
    log = self._log
    return log.read_text().count("\n") - 1 if log.exists() else -1

  def wait_for_step(self, step):
    deadline = time.monotonic() + processes.PATIENCE_S
    while self.steps() < step:
      assert time.monotonic() < deadline
      for member in self.members:
        assert member.poll() is None, member.communicate()
      time.sleep(0.02)

  def ends(self):
    """Returns the exit codes, and what was said on the two streams."""
    said = [m.communicate(timeout=processes.PATIENCE_S) for m in self.members]
    return [member.returncode for member in self.members], said


def _by_flags(index, port):
  where = f"--coordinator=127.0.0.1:{port}"
  return [where, "--processes=2", f"--process={index}"], {}


def _by_slurm(index, port):
  return [], {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": str(index),
    "SLURM_LOCALID": str(index),
    "JAX_COORDINATOR_PORT": str(port),
  }


def _besides_gloo(text: str) -> str:
  """Returns `text` without Gloo's report of its connections.

  Its threads write that word by word, so that the words of two lines may
  stand in any order.
  """
  words = (
    *(r"\[Gloo\] Rank ", " is connected to ", r" peer ranks\. "),
    *("Expected number of connected peer ranks is : ", r"\d+", r"\s"),
  )
  return re.sub("|".join(words), "", text)


def _weights(directory, run_dir):
  export = directory / run_dir / "export"
  files = (export / "model.safetensors", *export.glob("adapter/*.safetensors"))
  assert len(files) == 2
  return [safetensors.numpy.load_file(file) for file in files]


def _completions(directory, run_dir):
  text = (directory / run_dir / "completions.jsonl").read_text()
  return [json.loads(line)["completion"] for line in text.splitlines()]


def test_two_processes_train_as_one_through_a_kill_and_a_sigterm(tmp_path):
  """Killed, resumed, asked to end, resumed by one process of two devices."""
  tiny_run.weights(tmp_path)
  (tmp_path / "config.py").write_text(_CONFIG)

  with _Pair(tmp_path, launcher=_by_flags) as pair:
    pair.wait_for_step(3)  # by then the first checkpoint is whole
    pair.members[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    codes, _ = pair.ends()
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0
    assert time.monotonic() - killed < 150  # a heartbeat is waited for 100 s
    seen = pair.steps()

  for marks in tmp_path.glob("calls-*"):
    marks.unlink()
  with _Pair(tmp_path, launcher=_by_slurm, resume=True) as pair:
    pair.wait_for_step(seen + 2)  # later than what the first pair logged
    pair.members[1].send_signal(signal.SIGTERM)
    codes, said = pair.ends()
    assert codes == [1, 1], said
    (screen, _), (silence, _) = said
    first = int(re.search(r"step +(\d+)/", screen)[1])
    last = int(re.search(rf"after step (\d+) of {STEPS}", said[0][1])[1])
    assert _besides_gloo(silence) == ""
    assert "stopped" not in said[1][1]
    counts = [
      len((tmp_path / f"calls-{index}").read_text()) for index in range(2)
    ]
    assert counts == [COMPLETIONS // 2 * (last - first + 1)] * 2

  c = settings(tmp_path, "pair")
  c.mesh.fsdp, c.resume = 2, True
  assert len(list(train.steps(config.parse(c)))) == STEPS - last
  c = settings(tmp_path, "one")
  c.mesh.fsdp = 1
  train.run(config.parse(c))

  pair, one = (
    tiny_run.logged(tmp_path / "pair"),
    tiny_run.logged(tmp_path / "one"),
  )
  assert [line["step"] for line in pair] == list(range(STEPS + 1))
  for ours, theirs in zip(pair, one, strict=True):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
      np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-5)
  assert _completions(tmp_path, "pair") == _completions(tmp_path, "one")
  weights = zip(
    _weights(tmp_path, "pair"), _weights(tmp_path, "one"), strict=True
  )
  for ours, theirs in weights:
    for name, array in theirs.items():
      np.testing.assert_allclose(ours[name], array, rtol=0, atol=1e-5)


def test_two_processes_learn_the_weights_that_one_does(tmp_path):
  """BRIDGE's weights of demonstrations, and the file that they leave."""
  tiny_run.weights(tmp_path)
  (tmp_path / "config.py").write_text(_CONFIG)

  def launcher(index, port):
    flags, variables = _by_flags(index, port)
    changes = [f"--config.{name}={value}" for name, value in _WEIGHTS.items()]
    return [*flags, *changes], variables

  with _Pair(tmp_path, launcher=launcher) as pair:
    codes, said = pair.ends()
  assert codes == [0, 0], said
  c = settings(tmp_path, "one")
  c.update_from_flattened_dict(_WEIGHTS)
  train.run(config.parse(c))
  pair, one = (
    tiny_run.logged(tmp_path / name, "demonstrations.jsonl")
    for name in ("pair", "one")
  )
  assert len(one) == 10
  assert max(row["times_seen"] for row in one) > 1
  assert np.ptp([row["weight"] for row in one]) > 0.01
  for ours, theirs in zip(pair, one, strict=True):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
      if isinstance(value, float):
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-4)
      else:
        assert ours[name] == value


def test_a_process_with_other_settings_ends_all_with_one_sentence(tmp_path):
  (tmp_path / "config.py").write_text(_CONFIG)

  def launcher(index, port):
    flags, variables = _by_flags(index, port)
    # XLA has words of its own for how processes part.
    variables = variables | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    return [*flags, f"--config.seed={index}"], variables

  started = time.monotonic()
  with _Pair(tmp_path, launcher=launcher) as pair:
    codes, said = pair.ends()
  assert codes == [2, 2]
  # Gloo waits 150 s for a process that has left before a device has met it.
  assert time.monotonic() - started < 120
  (_, error), (_, silence) = said
  assert error.startswith("error: the settings must be the same in every")
  assert len(error.splitlines()) == 1
  assert silence == ""
  assert not (tmp_path / "pair").exists()
