"""A run that was stopped goes on to the same bits, or says why it cannot."""

import json
import signal

import chex
import numpy as np
import pytest

from bilevel_jax import config, errors, train
from tests import tiny_run

pytestmark = pytest.mark.usefixtures("programs_of_any_name")


def _logged(settings, name="metrics.jsonl"):
  return tiny_run.logged(settings.run_dir, name)


def _assert_same_run(left, right):
  chex.assert_trees_all_equal(
    tiny_run.last_state(left), tiny_run.last_state(right)
  )
  assert _logged(left) == _logged(right)
  assert _logged(left, "completions.jsonl") == _logged(
    right, "completions.jsonl"
  )


class _Stop:
  """Stands for a SIGTERM that arrives in the given step."""

  by = signal.SIGTERM

  def __init__(self, after: int):
    self._left = after

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def __bool__(self) -> bool:
    # Asked once a step.
    self._left -= 1
    return self._left <= 0


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {
      "rl__updates_per_rollout": 2,
      "optimizer__base__name": "sgd",
      "optimizer__base__momentum": 0.9,
      "method__bridge__rl_only_base": "resync",
      "method__bridge__resync_every": 3,
      "method__bridge__penalty_schedule": "adaptive",
    },
    {"method__bridge__upper": "demonstrations"},
    {"method__bridge__upper": "token_weight"},
    {"model__train": "adapter", "adapter__upper_targets": ("k", "up")},
    {
      "method__bridge__upper": "demonstrations",
      "method__bridge__hypergradient": "penalty",
    },
    {"method__name": "relift", "method__relift__buffer": 2},
    {"method__name": "trapo", "rollout__rounds_for_signal": 2},
  ],
  ids=[
    "adamw",
    "two_updates_sgd_resync",
    "weights",
    "tokens",
    "factors",
    "swapped",
    "waiting",
    "rounds",
  ],
)
def test_stopping_and_resuming_changes_no_bit(directory, changes, request):
  """Two steps and two more are four, mid-epoch and mid-schedule."""
  name = request.node.callspec.id
  whole = tiny_run.parsed(directory, f"{name}-whole", **changes)
  train.run(whole)
  parted = tiny_run.parsed(directory, f"{name}-parted", **changes)
  stop = _Stop(after=2)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train.termination, "Requested", lambda **_: stop)
    with pytest.raises(train.TrainingStopped, match="after step 2 of 4"):
      train.run(parted)
  parted = tiny_run.parsed(directory, f"{name}-parted", resume=True, **changes)
  assert [step.number for step in train.steps(parted)] == [3, 4]
  _assert_same_run(whole, parted)
  logged = _logged(whole)[1:]
  if name == "weights":
    rows = _logged(whole, "demonstrations.jsonl")
    assert rows == _logged(parted, "demonstrations.jsonl")
    assert len(rows) == 10
    assert all(0 < row["weight"] < 2 for row in rows)
  if name == "waiting":
    assert any("sft/loss" in line for line in logged)
    assert logged[1]["mix/waiting"] > 0  # where the other run stopped
  if name == "rounds":
    assert min(line["rollout/guided_share"] for line in logged) > 0


def _parted_run(directory, name, **changes):
  """What a run logs that is stopped after three steps and resumed."""
  whole = tiny_run.parsed(directory, f"{name}-whole", **changes)
  train.run(whole)
  parted = tiny_run.parsed(directory, f"{name}-parted", **changes)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train.termination, "Requested", lambda **_: _Stop(after=3))
    with pytest.raises(train.TrainingStopped, match="after step 3 of 4"):
      train.run(parted)
  train.run(
    tiny_run.parsed(directory, f"{name}-parted", resume=True, **changes)
  )
  _assert_same_run(whole, parted)
  return _logged(whole)


def test_a_cold_start_resumes_in_its_second_stage_to_the_bit(directory):
  """The KL's reference, made by SFT, is in the checkpoint."""
  logged = _parted_run(
    directory, "cold", method__name="sft_then_rl", rl__kl_coef=0.1
  )
  assert ["rl/reward" in line for line in logged[1:]] == [False] * 2 + [
    True
  ] * 2
  # Two programs take the two log-probs: the square of their rounding is left.
  assert 0 <= logged[3]["rl/kl_to_reference"] < 1e-12
  assert logged[4]["rl/kl_to_reference"] > 1e-6


def test_stages_resume_to_the_bit_with_their_temperature(directory):
  """What the controller made of the entropy is in the checkpoint."""
  logged = _parted_run(
    directory,
    "staged",
    method__name="staged",
    method__staged__rate=0.1,
    method__staged__unfiltered_stages=3,
  )
  first, second = (line["rollout/temperature"] for line in logged[3:])
  moved = 0.1 * (0.3 - logged[3]["rl/entropy"])
  assert first == 1.0
  assert second == pytest.approx(np.exp(moved), rel=1e-5)
  assert logged[3]["rollout/length"] <= 4.0  # half of the longest
  assert "rl/kl_to_reference" not in logged[4]


def test_resuming_a_finished_run_says_so_and_fails(directory):
  train.run(tiny_run.parsed(directory, "finished"))
  with pytest.raises(train.TrainingStopped, match="has done 4 steps"):
    train.run(tiny_run.parsed(directory, "finished", resume=True))


@pytest.mark.parametrize(
  "killed", ["training.sources.export", "reporting.run_report.write_report"]
)
@pytest.mark.parametrize(("steps", "budget"), [(4, None), (10**9, 60)])
def test_a_run_killed_after_its_last_step_is_brought_to_its_end(
  directory, killed, steps, budget
):
  """The last checkpoint is there; weights or the page are not."""
  name = f"{killed}-{budget}"
  changes = {"steps": steps, "training__max_sampled_tokens": budget}
  whole = tiny_run.parsed(directory, f"{name}-whole", **changes)
  expected = train.run(whole)
  assert (expected.number < 4) == (budget is not None)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(f"bilevel_jax.{killed}", _killed)
    with pytest.raises(_Killed):
      train.run(tiny_run.parsed(directory, name, **changes))
  resumed = tiny_run.parsed(directory, name, resume=True, **changes)
  step = train.run(resumed)
  assert (step.number, step.before, step.after) == (
    expected.number,
    expected.before,
    expected.after,
  )
  _assert_same_run(whole, resumed)
  files = [path.name for path in sorted(step.files.export.iterdir())]
  assert files == [p.name for p in sorted(expected.files.export.iterdir())]
  weights = "export/model.safetensors"
  assert (step.files.path / weights).read_bytes() == (
    expected.files.path / weights
  ).read_bytes()
  assert step.files.report.exists()
  with pytest.raises(train.TrainingStopped, match="nothing to train"):
    train.run(resumed)


def test_a_run_that_is_to_have_no_more_steps_is_brought_to_its_end(directory):
  for step in train.steps(tiny_run.parsed(directory, "shortened")):
    assert step.after is None
    break
  step = train.run(
    tiny_run.parsed(directory, "shortened", resume=True, steps=1)
  )
  assert step.number == 1
  assert step.after is not None
  assert step.files.report.exists()


class _Killed(BaseException):
  """What no code of a run catches."""


def _killed(*_, **__):
  raise _Killed


def test_a_damaged_checkpoint_costs_its_steps_alone(directory, capsys):
  """One bit of its arrays: the checkpoint before it is taken."""
  whole = tiny_run.parsed(directory, "whole")
  train.run(whole)
  for step in train.steps(tiny_run.parsed(directory, "flipped")):
    if step.number == 3:
      break
  checkpoints = directory / "flipped" / "checkpoints"
  data = max(
    (checkpoints / "3" / "state").glob("**/d/*"), key=lambda p: p.stat().st_size
  )
  changed = bytearray(data.read_bytes())
  changed[len(changed) // 2] ^= 4
  data.write_bytes(changed)
  capsys.readouterr()
  resumed = tiny_run.parsed(directory, "flipped", resume=True)
  train.run(resumed)
  said = capsys.readouterr().out
  assert (
    "checkpoint 3 is damaged and was moved to "
    f"{checkpoints.with_name('damaged_checkpoints')}/3: "
    f"{data.relative_to(checkpoints / '3')} has other bytes than were written; "
    "going on from step 2\n"
  ) in said
  assert "step 3/4" in said
  _assert_same_run(whole, resumed)


def test_a_run_that_had_no_checkpoint_yet_says_that_it_starts_again(
  directory, capsys
):
  changes = {"checkpoints__every": None, "checkpoints__export": False}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("bilevel_jax.train._stop_if_non_finite", _killed)
    with pytest.raises(_Killed):
      train.run(tiny_run.parsed(directory, "early", steps=1, **changes))
  resumed = tiny_run.parsed(directory, "early", steps=1, resume=True, **changes)
  assert train.run(resumed).number == 1
  said = capsys.readouterr().out
  assert "no checkpoint is there yet: the run starts again\n" in said


def test_resuming_with_other_weights_is_refused(directory, tmp_path):
  settings = tiny_run.settings(directory, "other")
  settings.model.weights = str(tiny_run.weights(tmp_path))
  train.run(config.parse(settings))
  tiny_run.weights(tmp_path, seed=1)
  settings.steps, settings.resume = settings.steps + 1, True
  with pytest.raises(errors.ConfigError, match="has other weights than"):
    train.run(config.parse(settings))


@pytest.mark.parametrize(
  "changed", ["prompt", "answer", "solution", "template", "held out"]
)
def test_resuming_with_other_examples_is_refused(directory, tmp_path, changed):
  """Of the same path: settings alone do not show it."""
  rows = [
    {"question": f"{n}+1", "answer": f"{n + 1}", "solution": f"{n + 1}"}
    for n in range(6)
  ]
  path, held_out = tmp_path / "rows.jsonl", tmp_path / "held_out.jsonl"
  weights = tiny_run.weights(tmp_path)

  def write(file, rows):
    file.write_text("\n".join(map(json.dumps, rows)))

  write(path, rows)
  write(held_out, rows)
  settings = tiny_run.settings(directory, f"examples {changed}")
  settings.steps = 2
  settings.data.questions.task = settings.data.evaluation.task = None
  settings.data.questions.count = settings.data.evaluation.count = None
  settings.data.questions.path = str(path)
  settings.data.evaluation.path = str(held_out)
  settings.model.weights = str(weights)
  _template(weights, "{{ messages[-1]['content'] }}")
  train.run(config.parse(settings))
  settings.steps, settings.resume = 3, True
  if changed == "template":
    _template(weights, "{{ messages[-1]['content'] }}=")
  elif changed == "held out":
    write(held_out, rows[1:])
  else:
    field = {"prompt": "question"}.get(changed, changed)
    write(path, [*rows[:-1], rows[-1] | {field: "5+3"}])
  with pytest.raises(errors.ConfigError, match="the examples are others than"):
    train.run(config.parse(settings))


def _template(weights, text):
  path = weights / "tokenizer_config.json"
  given = json.loads(path.read_text())
  path.write_text(json.dumps(given | {"chat_template": text}))
  (weights / "chat_template.jinja").write_text(text)


def test_a_directory_belongs_to_one_run(directory):
  """A second one is refused while the first has not ended."""
  first = tiny_run.settings(directory, "claimed")
  steps = train.steps(config.parse(first))
  next(steps)
  first.resume = True
  message = "run_dir .*claimed is in use by a run that has not ended"
  for _ in range(2):
    with pytest.raises(errors.ConfigError, match=message):
      train.run(config.parse(first))
  assert next(steps).number == 2
  steps.close()
  assert train.run(config.parse(first)).number == 4
