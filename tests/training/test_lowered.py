"""Updates compiled for 8 and 64 devices that are not there."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def said():
  """What the compiler says, by case; and its warnings."""
  found, warnings = {}, ""
  for devices, *names in (
    (8, "middling", "3b", "3b_tensor"),
    (64, "8b"),
  ):
    done = subprocess.run(
      [sys.executable, "-m", "tests.training.lowered", str(devices), *names],
      cwd=ROOT,
      env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0", "JAX_PLATFORMS": "cpu"},
      capture_output=True,
      text=True,
      check=True,
      timeout=300,
    )
    lines = map(json.loads, done.stdout.splitlines())
    found |= {line.pop("name"): line for line in lines}
    warnings += done.stderr
  return found, warnings


def test_no_array_is_gathered_for_want_of_a_way(said):
  """XLA would copy it whole to every device, and says so."""
  assert "nvoluntary full rematerialization" not in said[1]


@pytest.mark.parametrize("name", ["middling", "3b", "8b"])
def test_the_plan_is_within_a_tenth_of_the_compiler(said, name):
  case = said[0][name]
  assert abs(case["planned"] / case["compiled"] - 1) < 0.1


def test_rows_stay_and_weights_move(said):
  """Each matrix is gathered to be multiplied and to be differentiated."""
  cases = said[0]
  assert not cases["middling"]["collectives"]
  for name in ("3b", "8b"):
    found = cases[name]["collectives"]
    assert found["all-gather"] <= 20
    assert found["all-reduce"] <= 6
    assert found.get("collective-permute", 0) == 0
