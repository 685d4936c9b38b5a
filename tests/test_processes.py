"""Several processes: how they are started, and all that they agree on."""

import jax
import numpy as np
import pytest

from bilevel_jax import errors, processes
from tests import processes as pairs

SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NODELIST": "node[1-2]",
  "SLURM_PROCID": "1",
  "SLURM_LOCALID": "0",
}


def test_two_processes_agree_on_everything(tmp_path):
  pairs.run_pair("tests.two_processes", tmp_path / "file")


def test_one_process_has_it_all_to_itself():
  assert processes.is_first()
  assert not processes.several()
  assert processes.any_of(True)
  assert not processes.any_of(False)
  np.testing.assert_array_equal(processes.gather(np.arange(2)), [[0, 1]])
  assert processes.divide(3, list) == [0, 1, 2]
  assert processes.on_first(lambda: 3) == 3
  with pytest.raises(errors.ConfigError) as caught, processes.together():
    raise errors.ConfigError("plain")
  assert str(caught.value) == "plain"
  assert not isinstance(caught.value, processes.SharedError)


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    (
      (None, None, 1),
      "--coordinator, --processes and --process must be given together, got "
      "only --process",
    ),
    (("host:1", 2, None), "got only --coordinator and --processes"),
    (("host", 2, 0), "--coordinator must be HOST:PORT, got 'host'"),
    (("host:1", 0, 0), "--processes must be at least 1, got 0"),
    (("host:1", 2, 2), "--process must be from 0 to 1, one less than"),
  ],
)
def test_flags_that_do_not_add_up_are_refused(arguments, sentence):
  with pytest.raises(errors.ConfigError) as caught:
    processes.start(*arguments)
  assert sentence in str(caught.value)


@pytest.mark.parametrize(
  ("environment", "asked"),
  [
    ({}, True),
    (SLURM | {"SLURM_NTASKS": "2"}, True),
    (SLURM | {"SLURM_NTASKS": "1"}, False),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
    (
      {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
      True,
    ),
    ({"KUBERNETES_SERVICE_HOST": "h", "TPU_WORKER_HOSTNAMES": "a,b"}, True),
  ],
)
def test_detection_is_asked_where_there_may_be_others(
  environment, asked, monkeypatch
):
  calls = []

  def initialize(*arguments, **options):
    calls.append((arguments, options["cluster_detection_method"]))
    raise ValueError("coordinator_address should be defined.")

  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  processes.start(None, None, None)
  assert calls == [((None, None, None), None)] * asked


def test_a_cluster_that_cannot_be_joined_is_told_in_one_sentence(monkeypatch):
  def initialize(*arguments, **options):
    raise RuntimeError("Kubernetes API Error:\n 403")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  with pytest.raises(errors.ConfigError, match=r"join .*Error: 403$"):
    processes.start(None, None, None)
