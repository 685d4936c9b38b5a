"""SIGTERM and Ctrl-C ask a run to end; a second Ctrl-C does not ask."""

import os
import signal

import pytest

from bilevel_jax import main, train
from bilevel_jax.training import termination


@pytest.fixture(autouse=True)
def _ctrl_c_raises():
  """A shell starts what it runs in the background with Ctrl-C ignored."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_what_was_there_before_comes_back(signum):
  before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  with termination.Requested(interrupts=True) as asked:
    assert not asked
    os.kill(os.getpid(), signum)
    assert asked
    assert asked.by == signum
  assert before == [
    signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)
  ]


def test_a_second_ctrl_c_ends_at_once():
  with termination.Requested(interrupts=True) as asked:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  assert asked.by == signal.SIGINT


def test_a_loop_of_ones_own_is_interrupted_at_once():
  with termination.Requested(interrupts=False) as asked:
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
    assert not asked


@pytest.mark.parametrize(
  ("raised", "code", "said"),
  [
    (train.Interrupted("Ctrl-C after step 3"), 130, "Ctrl-C after step 3"),
    (train.TrainingStopped("SIGTERM after step 3"), 1, "SIGTERM after step 3"),
    (KeyboardInterrupt(), 130, "Ctrl-C; --config.resume=True goes on from"),
  ],
)
def test_an_end_before_the_last_step_is_one_line(
  monkeypatch, capsys, raised, code, said
):
  def work(*_, **__):
    raise raised

  monkeypatch.setattr(main.app, "run", work)
  with pytest.raises(SystemExit) as ended:
    main.run()
  assert ended.value.code == code
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1
  assert lines[0].startswith(f"stopped: {said}")
