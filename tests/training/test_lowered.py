"""Updates compiled for 8 and 64 devices that are not there."""

import json
import os
import subprocess
import sys

import pytest

from tests import processes


@pytest.fixture(scope="module")
def said():
  """What the compiler says, by case; and its warnings."""
  names = "middling", "3b", "3b_bridge", "3b_tensor", "8b"
  done = subprocess.run(
    [sys.executable, "-m", "tests.training.lowered", "64", *names],
    cwd=processes.ROOT,
    env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0", "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=True,
    timeout=processes.PATIENCE_S,
  )
  lines = map(json.loads, done.stdout.splitlines())
  return {line.pop("name"): line for line in lines}, done.stderr


def test_no_array_is_gathered_for_want_of_a_way(said):
  """XLA would copy it whole to every device, and says so."""
  assert "nvoluntary full rematerialization" not in said[1]


@pytest.mark.parametrize("name", ["middling", "3b", "3b_bridge", "8b"])
def test_the_plan_is_within_a_tenth_of_the_compiler(said, name):
  case = said[0][name]
  assert abs(case["planned"] / case["compiled"] - 1) < 0.1


def test_rows_stay_and_weights_move(said):
  """Each matrix is gathered to be multiplied and to be differentiated."""
  cases = said[0]
  assert not cases["middling"]["collectives"]
  for name, gradients in (("3b", 1), ("3b_bridge", 3), ("8b", 1)):
    found = cases[name]["collectives"]
    assert found["all-gather"] <= 20 * gradients
    assert found["all-reduce"] <= 6 * gradients
    assert found.get("collective-permute", 0) == 0
