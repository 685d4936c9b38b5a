"""Scoring processes that hang, die, and outlive nobody."""

import concurrent.futures
import importlib
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from bilevel_jax import errors, types
from bilevel_jax.rewards import pool
from tests import processes

OWN = '''
import os, signal, sys, time
def does(completion, question):
  """Does what the completion says; a number is its value."""
  if completion == "sleep": time.sleep(3600)
  if completion == "spin": re_match()
  if completion == "raise": raise KeyError
  if completion == "exit": sys.exit(3)
  if completion == "die": os.kill(os.getpid(), signal.SIGKILL)
  if completion == "stop": os.kill(os.getpid(), signal.SIGSTOP)
  if completion == "process": return os.getpid()
  if completion == "fork":
    child = os.fork()
    return 0.25 if child == 0 else 0.5
  if completion.startswith("child "):
    import subprocess
    child = subprocess.Popen(["sleep", "3600"])
    open(completion[6:], "w").write(str(child.pid))
    time.sleep(3600)
  if completion == "jax": return "jax" in sys.modules
  if completion == "fields": return question.answer == question.meta["key"]
  return float(completion)
def re_match():
  import re
  re.match("(a|aa)+$", "a" * 100 + "b")  # never lets go of the interpreter
'''


@pytest.fixture(autouse=True)
def _own_module(tmp_path, monkeypatch):
  (tmp_path / "own_rewards.py").write_text(OWN)
  monkeypatch.syspath_prepend(tmp_path)
  # Here once and for all, whatever a test does to the file: what it breaks
  # must break the scoring processes only.
  importlib.import_module("own_rewards")


# Nothing but what hangs may be late, on a machine that is busy with other work.
DEADLINE_S = 2.0


def _scorer(deadline_s=DEADLINE_S, workers=2):
  return pool.Scorer(
    {"own_rewards.does": 1.0}, deadline_s=deadline_s, workers=workers
  )


def _score(scorer, *texts):
  question = types.Question("", "", "a", None, {"key": "a"})
  return scorer.score(texts, [question] * len(texts))


def test_scores_keep_the_order_of_the_completions():
  values = [n / 8 for n in range(300)]
  with _scorer() as scorer:
    scores = _score(scorer, *map(str, values))
  np.testing.assert_array_equal(scores.rewards, np.float32(values))
  np.testing.assert_array_equal(scores.correct, np.array(values) >= 1)
  assert scores.scored.all()
  assert (scores.rewards.dtype, scores.scored.dtype) == (np.float32, np.bool_)


def test_no_completions_have_no_scores():
  with _scorer() as scorer:
    assert _score(scorer).rewards.shape == (0,)


def test_a_verifier_sees_the_question_and_no_jax():
  with _scorer() as scorer:
    np.testing.assert_array_equal(
      _score(scorer, "fields", "jax").rewards, [1.0, 0.0]
    )


@pytest.mark.parametrize("hang", ["sleep", "spin"])
def test_a_hanging_completion_costs_its_deadline_once_and_nobody_else(hang):
  texts = ["1"] * 50
  texts[7] = hang
  with _scorer() as scorer:
    _score(scorer, "1", "1", "1", "1")  # wait for the processes to start
    start = time.monotonic()
    scores = _score(scorer, *texts)
    took = time.monotonic() - start
    assert scorer.replaced == 1
    assert np.flatnonzero(~scores.scored).tolist() == [7]
    assert scores.rewards.sum() == 49
    assert not scores.correct[7]
    # Not a deadline for each of its neighbours.
    assert DEADLINE_S <= took < 10 * DEADLINE_S
    assert _score(scorer, *["1"] * 10).scored.all()
    assert scorer.replaced == 1


def test_a_process_that_cannot_even_end_itself_is_killed():
  with _scorer(workers=1) as scorer:
    scores = _score(scorer, *["1"] * 25, "stop", *["1"] * 14)
    assert np.flatnonzero(~scores.scored).tolist() == [25]
    assert scorer.replaced == 1


def test_a_completion_without_a_score_says_why():
  with _scorer(workers=1) as scorer:
    scores = _score(scorer, "raise", "1", "sleep", "die", "many words")
    assert scores.scored.tolist() == [False, True, False, False, False]
    found = dict(scorer.take_failures())
    assert [*found] == ["raise", "sleep", "die", "many words"]
    assert found["raise"].endswith("KeyError")
    assert found["sleep"] == f"scoring took longer than {DEADLINE_S:g} s"
    assert found["die"] == "the scoring process ended (exit code 137)"
    assert "could not convert string to float" in found["many words"]
    assert not scorer.take_failures()


def test_failures_of_every_call_are_kept_until_they_are_taken():
  scorer = pool.Scorer({"expression": 1.0})  # which reads question.meta["nums"]
  with scorer:
    _score(scorer, "1", "2")
    _score(scorer, "3")
    assert [f.completion for f in scorer.take_failures()] == ["1", "2", "3"]
    _score(scorer, *map(str, range(30)))
    assert [f.completion for f in scorer.take_failures()] == [
      str(n) for n in range(20)
    ]


@pytest.mark.parametrize("deadline_s", [math.inf, math.nan, 0.0, -1.0])
def test_a_deadline_is_a_time_that_comes(deadline_s):
  with pytest.raises(errors.ConfigError, match=r"^reward.deadline_s must be"):
    _scorer(deadline_s)


def test_the_child_of_a_verifier_that_forks_answers_for_nobody():
  with _scorer(deadline_s=60.0, workers=1) as scorer:
    for _ in range(3):
      scores = _score(scorer, "fork", "0.75", "fork", "0")
      np.testing.assert_array_equal(scores.rewards, [0.5, 0.75, 0.5, 0])


def test_what_a_verifier_started_ends_with_its_process(tmp_path):
  file = tmp_path / "child"
  with _scorer() as scorer:
    _score(scorer, f"child {file}")
    child = int(file.read_text())
    end = time.monotonic() + processes.PATIENCE_S
    while processes.alive(child) and time.monotonic() < end:
      time.sleep(0.05)
    assert not processes.alive(child)


def test_one_process_survives_many_hanging_completions():
  texts = ["sleep", "1", "sleep", "sleep", "1", "raise", "1"]
  with _scorer(workers=1) as scorer:
    scores = _score(scorer, *texts)
    assert scores.scored.tolist() == [text == "1" for text in texts]
    assert scorer.replaced == 3


# What kills a process that had scored others is tried by a fresh one, too.
@pytest.mark.parametrize(("death", "replaced"), [("die", 2), ("exit", 0)])
def test_a_process_that_dies_costs_one_completion_and_is_replaced(
  death, replaced
):
  with _scorer(deadline_s=60.0) as scorer:
    scores = _score(scorer, *["1"] * 20, death, *["1"] * 20)
    assert np.flatnonzero(~scores.scored).tolist() == [20]
    assert scorer.replaced == replaced
    assert len(scorer.process_ids) == 2


def test_a_process_that_is_killed_between_batches_costs_nothing():
  with _scorer(deadline_s=60.0) as scorer:
    _score(scorer, *["1"] * 10)
    killed = scorer.process_ids
    for process_id in killed:
      os.kill(process_id, signal.SIGKILL)
    while any(map(processes.alive, killed)):
      time.sleep(0.01)
    assert _score(scorer, *["1"] * 10).scored.all()
    assert not set(killed) & set(scorer.process_ids)


def test_interrupts_are_left_to_the_parent():
  # One process, for another may not have come as far as to hear.
  with _scorer(deadline_s=60.0, workers=1) as scorer:
    _score(scorer, *["1"] * 10)
    for process_id in scorer.process_ids:
      os.kill(process_id, signal.SIGINT)
      os.kill(process_id, signal.SIGTERM)
    assert _score(scorer, *["1"] * 10).scored.all()
    assert scorer.replaced == 0


def test_works_off_the_main_thread_and_from_several_threads():
  with (
    pool.Scorer({"math": 1.0}, deadline_s=60.0) as scorer,
    concurrent.futures.ThreadPoolExecutor(2) as threads,
  ):
    question = types.Question("", "", "x^2+x", None, {})
    judged = [
      threads.submit(scorer.score, [text] * 3, [question] * 3)
      for text in (r"\boxed{x(x+1)}", r"\boxed{x(x-1)}")
    ]
    rewards = [scores.result().rewards.tolist() for scores in judged]
  assert rewards == [[1, 1, 1], [0, 0, 0]]


def test_a_formula_that_hangs_sympy_is_unscorable():
  with pool.Scorer({"math": 1.0}, deadline_s=DEADLINE_S) as scorer:
    question = types.Question("", "", "x+1", None, {})
    texts = [r"\boxed{(10^{9})!}", r"\boxed{1+x}", "{" * 9999, "9" * 99999]
    scores = scorer.score(texts, [question] * 4)
  assert scores.scored.tolist() == [False, True, True, True]
  assert scores.correct.tolist() == [False, True, False, False]


def test_hostile_completions_cost_less_than_their_deadline():
  box = lambda text: rf"\boxed{{{text}}}"
  texts = [
    r"\boxed{" * 3000,
    box("{" * 900 + "1" + "}" * 900),
    box("(" * 900 + "x" + ")" * 900),
    box("9" * 100_000),
    box("9^{9^{9^{9^{9}}}}"),
    box("x^{10^{9}}+1"),
    box("(x+y+z+w)^{900}"),
    box(r"\frac{1}{1+" * 300 + "x" + "}" * 300),
    box(r"\sqrt{" * 250 + "x" + "}" * 250),
    box("(x+1)^2," * 200 + "x"),
    "the final answer is " * 6000,
    r"x = \frac{1}{2} and " * 5000,
  ]
  question = types.Question("", "", "x^2+1", None, {})
  with pool.Scorer({"math": 1.0}, deadline_s=20.0) as scorer:
    scores = scorer.score(texts, [question] * len(texts))
    assert scorer.replaced == 0
  assert scores.scored.all()
  assert not scores.correct.any()


def test_a_regular_expression_that_hangs_is_unscorable():
  with pool.Scorer(
    {"regex": 1.0}, pattern="^(a|aa)+$", deadline_s=DEADLINE_S
  ) as scorer:
    scores = _score(scorer, "a" * 10, "a" * 100 + "b", "b")
  assert scores.scored.tolist() == [True, False, True]
  assert scores.rewards.tolist() == [1.0, 0.0, 0.0]


def test_verifiers_that_cannot_hang_start_no_process():
  with pool.Scorer({"exact": 1.0, "number": 0.5}) as scorer:
    assert scorer.process_ids == []
    scores = _score(scorer, "#a", "#b")
  assert scores.rewards.tolist() == [1.0, 0.0]


def test_closing_leaves_no_process_and_ends_scoring():
  with _scorer() as scorer:
    process_ids = scorer.process_ids
    assert all(map(processes.alive, process_ids))
  assert not any(map(processes.alive, process_ids))
  with pytest.raises(RuntimeError, match="the scorer is closed"):
    _score(scorer, "1")
  scorer.close()


def test_what_cannot_be_imported_is_refused_before_a_process_starts():
  with pytest.raises(errors.ConfigError, match="nowhere"):
    pool.Scorer({"nowhere.does": 1.0})


def test_processes_that_cannot_start_are_given_up(tmp_path):
  (tmp_path / "own_rewards.py").write_text("import os; os._exit(5)")
  with _scorer() as scorer, pytest.raises(RuntimeError, match="exit code is 5"):
    _score(scorer, "1")
  (tmp_path / "own_rewards.py").write_text("import nowhere")
  with _scorer() as scorer, pytest.raises(RuntimeError, match="'nowhere'"):
    _score(scorer, "1")


# A script without the guard that multiprocessing's spawn needs.
SCRIPT = """
from bilevel_jax import types
from bilevel_jax.rewards import pool
print("main runs")
question = types.Question("", "", "5", None, {})
with pool.Scorer({"math": 1.0}, deadline_s=60.0) as scorer:
  print(scorer.score(["\\\\boxed{5}"], [question]).rewards)
"""


@pytest.mark.parametrize("how", ["script", "module", "command"])
def test_any_main_can_score(tmp_path, how):
  (tmp_path / "scores.py").write_text(SCRIPT)
  arguments = {
    "script": [str(tmp_path / "scores.py")],
    "module": ["-m", "scores"],
    "command": ["-c", SCRIPT],  # no file behind __main__, as in a notebook
  }[how]
  done = subprocess.run(
    [sys.executable, *arguments],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(processes.ROOT)},
    capture_output=True,
    text=True,
    check=False,
    timeout=processes.PATIENCE_S,
  )
  assert (done.stdout, done.stderr) == ("main runs\n[1.]\n", "")


@pytest.mark.parametrize("doing", ["1", "sleep", "spin"])
def test_no_process_outlives_a_parent_that_is_killed(tmp_path, doing):
  script = f"""
    import os, signal, threading, time
    from bilevel_jax import types
    from bilevel_jax.rewards import pool
    question = types.Question("", "", "", None, {{}})
    scorer = pool.Scorer({{"own_rewards.does": 1.0}}, deadline_s=4.0)
    scores = scorer.score(["1", "process"] * 20, [question] * 40)
    print(*scorer.process_ids, flush=True)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
    scorer.score(["{doing}"] * 4, [question] * 4)
    time.sleep(60)
    """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script)],
    env=os.environ | {"PYTHONPATH": f"{processes.ROOT}:{tmp_path}"},
    stdout=subprocess.PIPE,
    text=True,
    check=False,
    timeout=processes.PATIENCE_S,
  )
  assert done.returncode == -signal.SIGKILL
  process_ids = re.findall(r"\d+", done.stdout)
  assert len(process_ids) == 2
  end = time.monotonic() + 30
  while any(map(processes.alive, process_ids)) and time.monotonic() < end:
    time.sleep(0.1)
  assert not any(map(processes.alive, process_ids))
