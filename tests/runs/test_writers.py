"""What is logged survives kills, is valid JSON, and reaches every logger."""

import dataclasses
import json
import math
import os
import pathlib
import signal
import struct
import subprocess
import sys
import types as python_types

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import config, errors
from bilevel_jax.runs import directory, records
from bilevel_jax.runs.writers import Writers

COMPLETION = {
  "prompt": "2 + 2?",
  "completion": "4\u2028\ud800\r\n\x1b[31m\u00e9",
  "answer": "4",
  "reward": None,
  "finish_reason": "stop",
}


def make_settings(**logging):
  return config.parse(
    {
      "model": {"preset": "tiny"},
      "data": {"questions": {"task": "arithmetic"}},
      "logging": logging,
    }
  )


@pytest.fixture
def files(tmp_path):
  return directory.RunDirectory(tmp_path)


def test_a_step_is_one_line_there_at_once(files):
  with Writers(files, make_settings()) as writers:
    writers.step(1, {"rl/reward": jnp.float32(0.5), "sft/loss": np.ones(())})
    writers.step(2, {"rl/reward": 1})
    lines = files.metrics.read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {"step": 1, "rl/reward": 0.5, "sft/loss": 1.0},
    {"step": 2, "rl/reward": 1.0},
  ]


def test_a_number_that_is_not_finite_is_valid_json_and_read_back(files):
  values = {"a/x": math.nan, "a/y": math.inf, "a/z": -math.inf, "a/w": 0.1}
  with Writers(files, make_settings()) as writers:
    writers.step(1, values)

  def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")

  json.loads(files.metrics.read_text(), parse_constant=refuse)
  (record,) = records.read_records(files.metrics)
  np.testing.assert_equal(record, {"step": 1, **values})


def test_floats_come_back_to_the_bit(files):
  value = float(np.float32(0.1) / 3)
  with Writers(files, make_settings()) as writers:
    writers.step(1, {"rl/reward": np.float32(value)})
  assert records.read_records(files.metrics)[0]["rl/reward"] == float(
    np.float32(value)
  )


def test_completions_of_any_text_are_a_line_each(files):
  with Writers(files, make_settings()) as writers:
    writers.completions(3, [COMPLETION, COMPLETION | {"completion": "nan"}])
  found = records.read_records(files.completions)
  assert found[0] == {"step": 3, **COMPLETION}
  assert found[1]["completion"] == "nan"


def test_a_second_opening_goes_on_where_the_first_stopped(files):
  for step in (1, 2):
    with Writers(files, make_settings()) as writers:
      writers.step(step, {})
  assert [r["step"] for r in records.read_records(files.metrics)] == [1, 2]


def test_a_torn_last_line_is_not_read_and_is_dropped(files):
  files.metrics.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3, "rl/re')
  assert [r["step"] for r in records.read_records(files.metrics)] == [1, 2]
  records.drop_after(files.metrics, 3)
  assert files.metrics.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_truncation_keeps_the_bytes_of_what_it_keeps(files):
  lines = [b'{"step":0,  "a/b": "nan"}\n', b'{"step": 1}\n', b'{"step": 2}\n']
  files.metrics.write_bytes(b"".join(lines))
  records.drop_after(files.metrics, 1)
  assert files.metrics.read_bytes() == lines[0] + lines[1]


def test_files_that_are_not_there_hold_nothing(files):
  records.drop_after(files.metrics, 1)
  assert records.read_records(files.metrics) == []
  assert not files.metrics.exists()


PROGRAM = """
import os, pathlib, signal, sys
from bilevel_jax import config
from bilevel_jax.runs import directory, writers
files = directory.RunDirectory(pathlib.Path(sys.argv[1]))
writers = writers.Writers(files, config.Config())
for step in range(1, 8):
  writers.step(step, {"rl/reward": 0.5})
  writers.completions(step, [{"completion": "x" * 10_000}] * 4)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_no_step_that_was_logged(files):
  process = subprocess.run(
    [sys.executable, "-c", PROGRAM, str(files.path)],
    env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
  )
  assert process.returncode == -signal.SIGKILL
  steps = [record["step"] for record in records.read_records(files.metrics)]
  assert steps == list(range(1, 8))
  found = [record["step"] for record in records.read_records(files.completions)]
  assert found == [1 + n // 4 for n in range(28)]


@pytest.mark.parametrize(
  ("logging", "package"),
  [
    ({"tensorboard": True}, "tensorboardX"),
    ({"wandb_project": "p"}, "wandb"),
  ],
)
def test_a_missing_logger_is_named_with_its_extra(
  files, monkeypatch, logging, package
):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(errors.ConfigError, match=rf"{package}.*pip install"):
    Writers(files, make_settings(**logging))


def test_loggers_are_imported_only_when_asked_for(files, monkeypatch):
  for package in ("tensorboardX", "wandb"):
    monkeypatch.setitem(sys.modules, package, None)
  with Writers(files, make_settings()) as writers:
    writers.step(1, {})


class Recorder:
  """Stands for a logger's module, class or run; remembers every call."""

  def __init__(self):
    self.calls = []

  def __getattr__(self, name):
    def call(*args, **kwargs):
      self.calls.append((name, args, kwargs))
      return self

    return call


def stub(monkeypatch, package):
  recorder = Recorder()
  module = python_types.ModuleType(package)
  module.__getattr__ = recorder.__getattr__
  monkeypatch.setitem(sys.modules, package, module)
  return recorder


def test_wandb_gets_settings_numbers_and_completions(files, monkeypatch):
  recorder = stub(monkeypatch, "wandb")
  settings = make_settings(wandb_project="p")
  with Writers(files, settings) as writers:
    writers.step(1, {"rl/reward": 0.5})
    writers.completions(1, [COMPLETION])
  names = [name for name, _, _ in recorder.calls]
  assert names == ["init", "log", "Table", "log", "finish"]
  _, _, init = recorder.calls[0]
  assert init["project"] == "p"
  assert config.parse(init["config"]) == settings
  assert recorder.calls[1][1:] == (({"rl/reward": 0.5},), {"step": 1})
  assert recorder.calls[2][2]["columns"] == list(COMPLETION)
  assert recorder.calls[2][2]["data"] == [list(COMPLETION.values())]


def test_a_resumed_run_is_the_same_run_at_wandb(files, monkeypatch):
  recorder = stub(monkeypatch, "wandb")
  settings = make_settings(wandb_project="p")
  again = dataclasses.replace(settings, resume=True)
  for each in (settings, again, settings):
    Writers(files, each).close()
  ids = [kw["id"] for name, _, kw in recorder.calls if name == "init"]
  assert ids[0] == ids[1] != ids[2]


def test_tensorboard_purges_what_was_cut_off(files, monkeypatch):
  recorder = stub(monkeypatch, "tensorboardX")
  files.metrics.write_bytes(b'{"step": 1}\n{"step": 2}\n')
  with Writers(files, make_settings(tensorboard=True)) as writers:
    writers.step(3, {"rl/reward": 0.5})
    writers.completions(3, [COMPLETION])
  names = [name for name, _, _ in recorder.calls]
  assert names == ["SummaryWriter", "add_scalar", "flush", "add_text", "close"]
  assert recorder.calls[0][2] == {"purge_step": 3}
  assert recorder.calls[1][1] == ("rl/reward", 0.5, 3)


def test_tensorboard_events_hold_the_numbers(files):
  pytest.importorskip("tensorboardX", reason="extra tensorboard")
  from tensorboardX.proto import event_pb2

  with Writers(files, make_settings(tensorboard=True)) as writers:
    writers.step(1, {"rl/reward": 0.25})
    writers.completions(1, [COMPLETION])
  (path,) = (files.path / "tensorboard").iterdir()
  data, found = path.read_bytes(), {}
  while data:  # length, its checksum, an event, its checksum
    (size,) = struct.unpack("<Q", data[:8])
    event = event_pb2.Event.FromString(data[12 : 12 + size])
    found |= {value.tag: (event.step, value) for value in event.summary.value}
    data = data[16 + size :]
  step, value = found["rl/reward"]
  assert (step, value.simple_value) == (1, 0.25)
  assert any(tag.startswith("completions/0") for tag in found)
