"""What could not be scored is on file, with its step, as text of any kind."""

import pytest

from bilevel_jax.rewards.pool import Failure
from bilevel_jax.runs import reward_failures

TRACEBACK = "mine raised\nTraceback\n  File x\nstep 9: KeyError\r\x0bstep 9"


@pytest.fixture
def path(tmp_path):
  return tmp_path / "reward_failures.txt"


def _write(path, *steps):
  for step in steps:
    failure = Failure("a\nstep 9: b\ud800", f"{TRACEBACK}\nstep {step}: \udfff")
    entries = reward_failures.render(step, [failure, failure], "")
    reward_failures.append(path, entries)


def test_an_entry_says_the_step_the_reason_and_the_completion(path):
  failures = [Failure("1\n2", "slow"), Failure("\x1b[2J\xe9", "raised\nA\n  B")]
  assert reward_failures.render(3, failures, "evaluation") == (
    "step 3, evaluation: slow\n  completion: '1\\n2'\n"
    "step 3, evaluation: raised\n  A\n    B\n"
    "  completion: '\\x1b[2J\\xe9'\n"
  )


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_resumed_run_drops_what_came_later_and_nothing_else(path, step):
  _write(path, *range(1, step + 1))
  kept = path.read_bytes()
  _write(path, *range(step + 1, 5))
  reward_failures.drop_after(path, step)
  assert path.read_bytes() == kept
  reward_failures.drop_after(path, 9)
  assert path.read_bytes() == kept


def test_a_torn_entry_ends_where_it_was_torn(path):
  _write(path, 1)
  path.write_bytes(path.read_bytes()[:-9] + b"\xff")
  reward_failures.drop_after(path, 1)
  _write(path, 2)
  assert path.read_text().count("\nstep 2: ") == 2


def test_a_file_without_entries_goes(path):
  reward_failures.drop_after(path, 3)
  _write(path, 0, 1)
  reward_failures.drop_after(path, -1)
  assert not path.exists()
