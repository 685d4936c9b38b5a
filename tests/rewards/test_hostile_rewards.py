"""What a reward does costs its own completion, and no other."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from bilevel_jax import types
from bilevel_jax.rewards import pool
from tests import processes

DEADLINE_S = 3.0
VERIFIERS = {"tests.rewards.hostile.does": 1.0}
ENDED = r"the scoring process ended \(exit code {}\)"
LATE = "scoring took longer than 3 s"
RAISED = r"tests.rewards.hostile.does raised\n(.|\n)*{}"
FULL = r"MemoryError \(reward.memory allows 1 GB\)$"
NO_NUMBER = "tests.rewards.hostile.does must return a finite number .* got {}"


def _score(scorer, *texts):
  question = types.Question("", "", "a", None, {})
  return scorer.score(texts, [question] * len(texts))


def _ends(*process_ids):
  end = time.monotonic() + processes.PATIENCE_S
  while any(map(processes.alive, process_ids)) and time.monotonic() < end:
    time.sleep(0.05)
  return not any(map(processes.alive, process_ids))


@pytest.fixture(scope="module")
def scorer():
  with pool.Scorer(
    VERIFIERS, deadline_s=DEADLINE_S, memory=10**9, workers=1
  ) as made:
    yield made


@pytest.mark.parametrize(
  ("does", "reason"),
  [
    ("loop", LATE),
    ("loop_in_c", LATE),
    ("block_signals", LATE),
    ("flood", LATE),
    ("fork_bomb", LATE),
    ("end", ENDED.format(0)),
    ("crash", ENDED.format(139)),
    ("kill_group", ENDED.format(137)),
    ("kill_parent", ENDED.format(137)),
    ("recursion_without_end", ENDED.format(139)),
    ("interrupt", ENDED.format(".*")),
    ("no_descriptors", RAISED.format("OSError: .*Too many open files$")),
    ("close_all", ENDED.format(".*")),
    ("leave", RAISED.format("SystemExit: 3$")),
    ("cancel", RAISED.format("CancelledError$")),
    ("recursion", RAISED.format("RecursionError: .*$")),
    ("raise_unpicklable", RAISED.format(".*Local: .*$")),
    ("raise_text 55296", RAISED.format("ValueError: .*$")),
    ("raise_text 0", RAISED.format("ValueError: .*$")),
    ("raise_text 10", RAISED.format("ValueError:$")),
    ("raise_long", RAISED.format("xxx$")),
    ("raise_hostile", RAISED.format(".*_Hostile: .*$")),
    ("raise_group", RAISED.format("")),
    ("take 8", RAISED.format(FULL)),
    ("take_slowly", RAISED.format(FULL)),
    ("map_privately", RAISED.format(".*Cannot allocate memory$")),
    ("deep", NO_NUMBER.format(r"\[\[")),
    ("large", NO_NUMBER.format(r"\[0.0, ")),
    ("integer", NO_NUMBER.format("")),
    ("text", NO_NUMBER.format("b'1'")),
    ("generator", NO_NUMBER.format("<generator")),
    ("coroutine", ".* must be a plain function, got an async one"),
  ],
)
def test_what_fails_costs_itself_alone(scorer, does, reason):
  scores = _score(scorer, "1", does, "0.75", "0.25")
  assert scores.scored.tolist() == [True, False, True, True]
  assert scores.rewards.tolist() == [1.0, 0.0, 0.75, 0.25]
  (failure,) = scorer.take_failures()
  assert failure.completion == does
  assert re.match(reason, failure.reason)
  assert len(failure.reason) < 5000


@pytest.mark.parametrize(
  "does",
  [
    "loop_in_threads",
    "leave_in_thread",
    "leave_later 0.1",
    "alarm 0.1",
    "stop_parent",
    "close_output",
    "garbage",
    "forge",
    "forge_wrong",
    "fork",
    "fork_and_leave",
    "leak",
  ],
)
def test_what_is_left_behind_costs_no_later_one(scorer, does):
  later = ["naptime 0.3", "need", "0", "0.25"]
  scores = _score(scorer, does, *later)
  # A reward that forges an answer may as well return it: it is its own.
  own = 9.0 if does == "forge" else 0.5
  assert scores.rewards.tolist() == [own, 0.5, 1.0, 0.0, 0.25]
  assert scores.scored.all()
  assert scores.correct.tolist() == [own > 1, False, True, False, False]


def test_a_process_that_no_longer_reads_costs_no_more_than_its_deadline(scorer):
  scores = _score(scorer, "stop_later", "naptime 0.5", "x" * 10**6, "1")
  assert scores.scored.tolist() == [True, False, False, True]
  scores = _score(scorer, "steal", "0 " + "x" * 10**6, "1")
  assert scores.scored.tolist()[::2] == [True, True]


def test_standard_input_is_empty(scorer):
  assert _score(scorer, "read_input").rewards.tolist() == [0.5]


def test_memory_is_limited_in_children_too(scorer):
  assert _score(scorer, "take_in_child").rewards.tolist() == [1.0]


@pytest.mark.parametrize("kind", ["child", "daemon"])
@pytest.mark.parametrize("then", ["end", "loop", ""])
def test_what_it_started_ends_with_it(tmp_path, kind, then):
  file = tmp_path / "process_id"
  with pool.Scorer(VERIFIERS, deadline_s=DEADLINE_S, workers=1) as scorer:
    scores = _score(scorer, f"{kind} {file}", *filter(None, [then]))
    assert scores.rewards[0] == 0.5
    process_id = file.read_text()
    assert not then or _ends(process_id)
  assert _ends(process_id)


def _script(tmp_path, body):
  """Starts a script that has a scorer with a deadline of 2 s."""
  script = f"""
    import os, signal, sys, time
    from bilevel_jax import types
    from bilevel_jax.rewards import pool
    question = types.Question("", "", "", None, {{}})
    scorer = pool.Scorer({VERIFIERS}, deadline_s=2.0, workers=1)
    def score(*texts):
      scores = scorer.score(texts, [question] * len(texts))
      print(*scores.rewards, flush=True)
    score("1")
    """
  return subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(script) + body],
    env=os.environ | {"PYTHONPATH": f"{processes.ROOT}:{tmp_path}"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


def _family(process_id):
  """Returns a process and all below it, whatever their sessions."""
  found = [process_id]
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    fields = path.read_text().rpartition(")")[2].split()
    if int(fields[1]) == process_id:
      found += _family(int(path.parent.name))
  return found


@pytest.mark.parametrize("above_first", [True, False])
def test_time_in_which_the_run_was_stopped_does_not_count(
  tmp_path, above_first
):
  """A process of a stopped job may be continued some time after another."""
  body = 'score("0.25", "naptime 1.5", "0.75")'
  with _script(tmp_path, body) as script:
    assert script.stdout.readline() == "1.0\n"
    time.sleep(0.7)
    stopped = _family(script.pid)
    assert len(stopped) == 3
    for process_id in stopped:
      os.kill(process_id, signal.SIGSTOP)
    time.sleep(3.0)
    for process_id in stopped if above_first else reversed(stopped):
      os.kill(process_id, signal.SIGCONT)
      time.sleep(0.5)
    assert script.stdout.readline() == "0.25 0.5 0.75\n"


def test_daemons_end_with_a_run_that_is_killed(tmp_path):
  file = tmp_path / "process_id"
  with _script(tmp_path, f'score("daemon {file}"); score("loop")') as script:
    assert script.stdout.readline() == "1.0\n"
    assert script.stdout.readline() == "0.5\n"
    below = _family(script.pid)[1:]
    assert len(below) >= 2
    script.kill()
    assert _ends(*below, file.read_text())


def test_a_child_of_the_run_keeps_no_scoring_process_alive(tmp_path):
  body = """
if os.fork() == 0:
  time.sleep(60)
  os._exit(0)
start = time.monotonic()
scorer.close()
print(time.monotonic() - start < 4.0, flush=True)
"""
  with _script(tmp_path, body) as script:
    assert script.stdout.readline() == "1.0\n"
    assert script.stdout.readline() == "True\n"
    os.killpg(script.pid, signal.SIGKILL)


def test_what_a_reward_prints_is_seen_though_it_is_killed(tmp_path):
  with _script(tmp_path, 'score("say hello")') as script:
    assert script.communicate() == ("1.0\n0.0\n", "hello\n")


def test_output_is_passed_on_but_not_a_flood():
  code = (
    "import os, sys; print('begins', flush=True)\n"
    "for _ in range(1000): os.write(1, b'y' * 2**16)\n"
    "sys.exit(7)"
  )
  body = (
    "import sys, time\n"
    "from bilevel_jax import limited_process\n"
    f"p = limited_process.LimitedProcess([sys.executable, '-c', {code!r}])\n"
    "time.sleep(2)\n"
    "print(p.end())"
  )
  done = subprocess.run(
    [sys.executable, "-c", body],
    cwd=processes.ROOT,
    capture_output=True,
    check=False,
    timeout=processes.PATIENCE_S,
  )
  assert done.stdout == b"7\n"
  assert done.stderr.startswith(b"begins\n")
  assert 2**16 <= len(done.stderr) < 2**20
