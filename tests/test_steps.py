"""A run step by step: what each says, and what breaking off leaves."""

import pathlib

import pytest

from bilevel_jax import config, generate, train, types
from tests import tiny_run


def _settings(directory, run_dir, **changes):
  c = tiny_run.settings(directory, run_dir)
  c.checkpoints.every = None
  c.update(changes)
  return config.parse(c)


def _logged(settings, name="metrics.jsonl"):
  return tiny_run.logged(settings.run_dir, name)


@pytest.fixture(scope="module")
def whole(directory):
  """The settings of a run, and its four steps."""
  settings = _settings(directory, "whole")
  return settings, list(train.steps(settings))


def test_a_step_is_what_the_run_logs(whole):
  settings, steps = whole
  assert [step.number for step in steps] == [1, 2, 3, 4]
  for step, line in zip(steps, _logged(settings)[1:], strict=True):
    said = {k: v for k, v in step.metrics.items() if k[:5] != "time/"}
    assert said | {"step": step.number} == line
  # Three questions of four samples each; one of each is written down.
  assert [len(step.completions) for step in steps] == [12] * 4
  written = _logged(settings, "completions.jsonl")
  shown = [
    {"step": step.number, **record}
    for step in steps
    for record in step.completions[::4]
  ]
  assert shown == written
  assert steps[0].before == steps[-1].before
  assert steps[-1].before.metrics() == {
    k: v for k, v in _logged(settings)[0].items() if k != "step"
  }
  assert [step.after is None for step in steps] == [True] * 3 + [False]


def test_the_last_step_is_handed_out_with_its_weights_exported(whole):
  settings, steps = whole
  drawing = types.Sampling(temperature=0.0)
  ask = lambda model: generate.complete(
    model, ["1+2=", "3"], samples=2, max_new_tokens=6, sampling=drawing
  )
  exported = ask(generate.load(settings.run_dir))
  assert ask(steps[-1].model()).texts == exported.texts
  assert [len(texts) for texts in exported.texts] == [2, 2]
  assert exported.texts[0][0] == exported.texts[0][1]  # greedy


def test_a_loop_that_breaks_off_is_saved_and_goes_on_to_the_same_bits(
  directory, whole, capsys
):
  """Nothing else saves; at the last step, all is done that a run does."""
  parted = _settings(directory, "parted")
  with pytest.raises(KeyboardInterrupt):
    _leave(parted, after=2, error=KeyboardInterrupt)
  resumed = _settings(directory, "parted", resume=True)
  assert _leave(resumed, after=4) == [3, 4]
  with pytest.raises(train.TrainingStopped, match="has done 4 steps"):
    next(train.steps(resumed))
  assert capsys.readouterr().out == ""
  assert (pathlib.Path(parted.run_dir) / "report.html").exists()
  exports = [
    (pathlib.Path(s.run_dir) / "export" / "model.safetensors").read_bytes()
    for s in (whole[0], parted)
  ]
  assert exports[0] == exports[1]
  for name in ("metrics.jsonl", "completions.jsonl", "answers.jsonl"):
    assert _logged(parted, name) == _logged(whole[0], name)


def _leave(settings, after, error=None):
  """Leaves a run's loop in the midst of it; returns the steps that it saw."""
  seen = []
  for step in train.steps(settings):
    seen.append(step.number)
    if step.number == after:
      if error is None:
        break
      raise error
  return seen
