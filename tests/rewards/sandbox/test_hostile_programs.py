"""Every hostile program: as root and as a user without rights."""

import contextlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest

from bilevel_jax import errors
from bilevel_jax.rewards.sandbox import fork_server, settings
from tests import processes
from tests.rewards.sandbox import campaign, hostile_programs

_SYSTEM = pathlib.Path("/usr/bin/python3")  # one that every user can read
_CAMPAIGNS = list(
  itertools.product(["namespaces", "landlock"], ["own_user", "nobody"])
)


@contextlib.contextmanager
def _readable_by_all():
  """A copy of the code, which this user's own directory may keep closed."""
  ignore = shutil.ignore_patterns("__pycache__", "*.safetensors")
  with tempfile.TemporaryDirectory() as name:
    directory = pathlib.Path(name)
    for name in ("bilevel_jax", "tests/rewards/sandbox"):
      shutil.copytree(processes.ROOT / name, directory / name, ignore=ignore)
    (directory / "tests" / "__init__.py").touch()  # before others of that name
    directory.chmod(0o755)
    yield directory


def _why_not(isolation, who):
  """Returns why a campaign cannot be; None: it can."""
  try:
    fork_server.in_force(settings.Sandbox(isolation=isolation))
  except errors.ConfigError as error:
    return str(error)
  if who == "nobody" and os.geteuid():
    return "not root: the other campaigns are of a user without rights"
  if who == "nobody" and not _SYSTEM.exists():
    return f"no Python that every user can read at {_SYSTEM}"
  return None


@pytest.fixture(scope="module")
def campaigns():
  """Campaigns by (isolation, who): processes, or why there is none."""
  with _readable_by_all() as directory:
    started = {}
    for isolation, who in _CAMPAIGNS:
      users = {"user": 4242, "group": 4242, "extra_groups": []}
      started[isolation, who] = _why_not(isolation, who) or subprocess.Popen(
        [
          *(_SYSTEM if who == "nobody" else sys.executable, "-m"),
          *("tests.rewards.sandbox.campaign", isolation),
        ],
        cwd=directory,
        env={"PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        **(users if who == "nobody" else {}),
      )
    yield started
    for process in started.values():
      if not isinstance(process, str):
        process.kill()
        process.communicate()


@pytest.fixture(scope="module", params=_CAMPAIGNS, ids="-".join)
def found(request, campaigns):
  """What came of a campaign."""
  process = campaigns[request.param]
  if isinstance(process, str):
    pytest.skip(process)
  said, _ = process.communicate(timeout=processes.PATIENCE_S)
  assert process.returncode == 0
  found = json.loads(said)
  isolation, who = request.param
  user = 4242 if who == "nobody" else os.geteuid()
  assert (found["isolation"], found["user"]) == (isolation, user)
  return found


def test_no_hostile_program_passes(found):
  assert len(found["programs"]) == len(hostile_programs.PROGRAMS) >= 60
  scores = {name: of["scores"] for name, of in found["programs"].items()}
  assert {name for name in scores if scores[name] != [0, 0]} == set()


def test_each_costs_its_deadline_at_most(found):
  # Once as a script, once as a function; the rest is a machine that is busy.
  most = 2 * campaign.DEADLINE_S + 2.0
  seconds = {name: of["seconds"] for name, of in found["programs"].items()}
  assert {name: s for name, s in seconds.items() if s > most} == {}


def test_good_programs_after_and_beside_them_pass(found):
  after = {name: of["after"] for name, of in found["programs"].items()}
  assert {name for name in after if after[name] != [1, 1]} == set()
  assert found["neighbours"]
  assert all(scores == [1, 1] for scores in found["neighbours"])
  print(
    f"{found['isolation']}, user {found['user']}: the longest of "
    f"{len(found['neighbours'])} good programs beside them took "
    f"{found['longest']:.3f} s"
  )


def test_no_process_and_no_file_is_left(found):
  assert found["processes_left"] == 0
  assert found["processes_left_at_the_end"] == 0
  assert found["files_left"] == []
