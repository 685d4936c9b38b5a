"""What a person reads is what happened, and nothing in a text is obeyed."""

import io
import pathlib
from typing import NamedTuple

import pytest
import rich.console

from bilevel_jax import config
from bilevel_jax.reporting import terminal as terminal_lib
from bilevel_jax.reporting import text

VALUES = {
  "rl/reward": 0.4375,
  "sft/loss": 1.25,
  "mix/sft_share": 0.051,
  "bilevel/cooperative_gain": -0.0123,
  "time/rollout_tokens_per_s": 1234.5,
}


class Result(NamedTuple):
  correct: int
  questions: int

  @property
  def accuracy(self):
    return self.correct / self.questions

  @property
  def interval(self):
    return (self.accuracy - 0.05, self.accuracy + 0.05)


def record(completion, **changes):
  return {
    "prompt": "2 + 2?",
    "completion": completion,
    "answer": "4",
    "reward": 1.0,
    "finish_reason": "stop",
  } | changes


class Screen:
  """A display on a file, with a clock that is set by hand."""

  def __init__(
    self, *, terminal=False, first=0, progress=True, width=80, steps=10
  ):
    self.file, self.now = io.StringIO(), 0.0
    self.display = terminal_lib.Display(
      steps,
      first,
      config.Logging(progress=progress),
      console=rich.console.Console(
        file=self.file,
        width=width,
        force_terminal=terminal,
        color_system="truecolor" if terminal else None,
        highlight=False,
      ),
      clock=lambda: self.now,
    )

  @property
  def text(self):
    return self.file.getvalue()


def test_elsewhere_than_on_a_terminal_a_step_is_one_plain_line():
  screen = Screen()
  with screen.display as shown:
    screen.now = 30.0
    shown.step(1, VALUES)
    screen.now = 60.0
    shown.step(2, VALUES)
  assert screen.text.splitlines() == [
    "step  1/10  reward 0.438  SFT 1.250  SFT share 0.05  gain -0.0123  "
    "tok/s 1,234  4m 30s left",
    "step  2/10  reward 0.438  SFT 1.250  SFT share 0.05  gain -0.0123  "
    "tok/s 1,234  4m 00s left",
  ]


def test_a_step_is_one_line_however_narrow_the_log():
  screen = Screen(width=30)
  with screen.display as shown:
    for step in (1, 2):
      shown.step(step, VALUES)
  assert len(screen.text.splitlines()) == 2


def test_metrics_that_a_method_lacks_are_left_out():
  screen = Screen()
  with screen.display as shown:
    shown.step(1, {"sft/loss": 2.0})
  assert screen.text == "step  1/10  SFT 2.000  0s left\n"


def test_time_left_of_a_resumed_run_counts_its_own_steps():
  screen = Screen(first=8)
  with screen.display as shown:
    screen.now = 3600.0
    shown.step(9, {})
  assert "1h 00m left" in screen.text


def test_time_left_follows_the_recent_steps():
  screen = Screen(steps=100)
  with screen.display as shown:
    screen.now = 100_000.0  # the first step compiles
    for step in range(1, terminal_lib._RECENT + 10):
      screen.now += 1.0
      shown.step(step, {})
  assert screen.text.splitlines()[-1].endswith(" 1m 11s left")


def test_a_skipped_update_is_said():
  screen = Screen()
  with screen.display as shown:
    shown.step(1, {"training/skipped_updates": 1.0})
  assert "update skipped: not finite" in screen.text


def test_on_a_terminal_there_is_a_live_line_that_goes_away():
  screen = Screen(terminal=True, width=120)
  with screen.display as shown:
    shown.step(3, VALUES)
    shown._progress.refresh()
    assert "step 3/10" in screen.text
    assert "reward 0.438" in screen.text
    shown.note("evaluating")
  assert "evaluating" in screen.text
  assert "\x1b[2K" in screen.text  # the line is erased


def test_progress_off_gives_plain_lines_on_a_terminal_too():
  screen = Screen(terminal=True, progress=False)
  with screen.display as shown:
    shown.step(3, VALUES)
  assert screen.text.startswith("step  3/10  reward")
  assert "\x1b[2K" not in screen.text


def test_completions_are_shown_with_question_answer_and_reward():
  screen = Screen()
  with screen.display as shown:
    shown.completions(7, [record("It is 4."), record("?", reward=None)])
  for words in (
    "step 7  reward 1.00  ended by stop",
    "step 7  not scored  ended by stop",
    "2 + 2?",
    "It is 4.",
    "answer      4",
  ):
    assert words in screen.text


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_in_a_completion_is_obeyed(terminal):
  hostile = (
    "[bold red]x[/] [/nonsense] \x1b[31mred\x1b[2J \x07\r\u202e\x9b1m end"
  )
  screen = Screen(terminal=terminal, width=200)
  with screen.display as shown:
    shown.completions(1, [record(hostile, prompt=hostile, answer=hostile)])
    shown.note(hostile)
  visible = (
    r"[bold red]x[/] [/nonsense] \x1b[31mred\x1b[2J \x07\r\u202e\x9b1m end"
  )
  assert screen.text.count(visible) == 4
  for code in ("\x1b[31m", "\x1b[2J", "\x07", "\u202e", "\x9b"):
    assert code not in screen.text


def test_lines_and_other_alphabets_stay():
  assert text.visible("a\n\tb\r\nü 漢 π") == "a\n  b\nü 漢 π"


def test_wide_text_is_wrapped_and_none_of_it_lost():
  words = [f"word{n}" for n in range(200)]
  screen = Screen(width=60)
  with screen.display as shown:
    shown.completions(1, [record(" ".join(words) + " " + "y" * 300)])
  lines = screen.text.splitlines()
  assert max(map(len, lines)) == 60
  assert all(any(word in line for line in lines) for word in words)
  assert screen.text.count("y") >= 300


def test_the_closing_table_has_both_accuracies_with_intervals():
  screen = Screen()
  with screen.display as shown:
    shown.evaluation(0, Result(100, 500))
    shown.closing(Result(100, 500), Result(400, 500), pathlib.Path("/run"))
  rows = {
    line.split()[0]: line.split()
    for line in screen.text.splitlines()
    if line.split() and line.split()[0] in ("before", "after")
  }
  assert rows == {
    "before": ["before", "20.0%", "15.0%", "to", "25.0%", "100", "500"],
    "after": ["after", "80.0%", "75.0%", "to", "85.0%", "400", "500"],
  }
  assert "95% interval" in screen.text
  assert "report: /run/report.html" in screen.text
  assert "accuracy after step 0: 20.0% (100 of 500, 95%" in screen.text


def test_a_run_without_held_out_questions_closes_without_a_table():
  screen = Screen()
  with screen.display as shown:
    shown.closing(None, None, pathlib.Path("/run"))
  assert screen.text == "report: /run/report.html\n"
