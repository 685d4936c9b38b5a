"""What a run or an evaluation depends on stays, or its change is told."""

import json
import os
import shutil

import pytest

from bilevel_jax import config, errors, evaluate, train, types
from bilevel_jax.data import dates, tokenizer
from tests import tiny_run

DATED = "{{ strftime_now('%H:%M:%S') }} {{ messages[-1]['content'] }}="
# Llama 3.2's way: a date only where there is a system message.
SOMETIMES = (
  "{% if messages[0]['role'] == 'system' %}{{ strftime_now('%d %b %Y') }}"
  "{% endif %}{{ messages[-1]['content'] }}="
)
# What a line begins with stays, too.
DAY = (
  "  {{ strftime_now(format='%-d %B %Y, day %j') }}\n"
  "{{ messages[-1]['content'] }}="
)
THEN, LATER = "2026-03-01T09:08:07", "2027-01-02T03:04:05"
QUESTION = types.Question("q", "1+2", "3", "3", {})


def _weights(directory, template):
  weights = tiny_run.weights(directory)
  (weights / "chat_template.jinja").write_text(template)
  return weights


@pytest.mark.parametrize(
  ("template", "date", "text"),
  [
    (DATED, THEN, "09:08:07 1+2="),
    (DAY, THEN, "  1 March 2026, day 060\n1+2="),
    (SOMETIMES, THEN, "1+2="),
    ("{{ messages[-1]['content'] }}=", None, "1+2="),
  ],
)
def test_a_template_is_told_the_date_of_the_setting(
  tmp_path, template, date, text
):
  weights = _weights(tmp_path, template)
  loaded = tokenizer.from_source(weights, prompt="{question}", date=THEN)
  assert loaded.prompt_text(QUESTION) == text
  assert loaded.date == (date and THEN)
  with pytest.raises(errors.ConfigError, match=r"tokenizer\.date must be a"):
    tokenizer.from_source(weights, date="yesterday")


@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_resumed_run_renders_prompts_with_the_date_of_its_start(
  directory, tmp_path, monkeypatch, steps_before
):
  settings = tiny_run.settings(tmp_path)
  settings.model.weights = str(_weights(tmp_path, DATED))
  settings.data.evaluation.task = None
  settings.steps, settings.checkpoints.export = 2, False
  monkeypatch.setattr(dates, "of_seconds", lambda _: THEN)
  steps = train.steps(config.parse(settings))
  for _ in range(max(steps_before, 1)):
    last = next(steps)
  steps.close()
  path = last.files.settings
  assert json.loads(path.read_text())["config"]["tokenizer"]["date"] == THEN
  if not steps_before:
    shutil.rmtree(last.files.checkpoints)
  monkeypatch.setattr(dates, "of_seconds", lambda _: LATER)
  settings.steps, settings.resume = 3, True
  resumed = train.run(config.parse(settings))
  assert resumed.run.model.tokenizer.date == THEN
  assert resumed.run.model.tokenizer.prompt_text(QUESTION).startswith(
    "09:08:07 "
  )
  assert json.loads(path.read_text())["config"]["tokenizer"]["date"] == THEN
  settings.steps, settings.tokenizer.date = 4, LATER
  with pytest.raises(errors.ConfigError, match="the examples are others than"):
    train.run(config.parse(settings))


def test_changed_code_of_a_reward_is_told_and_a_path_may_be_spelled_otherwise(
  directory, tmp_path, monkeypatch, capsys
):
  module = tmp_path / "reward_of_ones_own.py"
  monkeypatch.syspath_prepend(str(tmp_path))
  code = "def reward(completion, question):\n  return float(len(completion))\n"
  module.write_text(code)
  (tmp_path / "linked").symlink_to(directory / "policy")
  settings = tiny_run.settings(directory, "own_reward")
  settings.steps, settings.checkpoints.export = 1, False
  settings.data.evaluation.task = None
  settings.reward.verifiers = ("reward_of_ones_own.reward",)
  train.run(config.parse(settings))
  told = "the code of reward_of_ones_own.reward is not what the run started"
  spellings = (
    str(directory / "policy") + "/",
    os.path.relpath(directory / "policy"),
    str(tmp_path / "linked"),
  )
  for number, weights in enumerate(spellings):
    capsys.readouterr()
    settings.steps, settings.resume = number + 2, True
    settings.model.weights = weights
    if number:
      module.write_text(code.replace("len(completion)", "0"))
    train.run(config.parse(settings))
    assert (told in " ".join(capsys.readouterr().out.split())) == bool(number)
  settings.model.weights = str(directory / "elsewhere")
  with pytest.raises(errors.ConfigError, match=r"model\.weights must stay"):
    train.run(config.parse(settings))


@pytest.fixture
def evaluated(tmp_path, capsys):
  row = {"id": "1", "question": "1+1", "answer": "2"}
  (tmp_path / "math500.jsonl").write_text(json.dumps(row))

  def run(weights, *arguments, out="out"):
    code = evaluate.main(
      [
        *("--weights", str(weights), "--data", str(tmp_path)),
        *("--benchmarks", "math500", "--out", str(tmp_path / out)),
        *("--max-new-tokens", "2", "--template", "{question}"),
        *("--verifier", "number", *arguments),
      ]
    )
    return code, capsys.readouterr().err

  return run


def test_prompts_are_compared_and_spellings_of_weights_are_not(
  tmp_path, evaluated, monkeypatch
):
  plain = "{{ messages[-1]['content'] }}="
  weights = _weights(tmp_path, plain)
  assert evaluated(weights)[0] == 0
  moved = shutil.copytree(weights, tmp_path / "moved")
  for spelled in (f"{weights}/", os.path.relpath(weights), moved):
    assert evaluated(spelled)[0] == 0
  for template in (
    plain + "=",
    " " + plain,
    "Q: " + plain,
  ):
    (moved / "chat_template.jinja").write_text(template)
    for arguments in ((), ("--against", str(tmp_path / "out"))):
      code, err = evaluated(
        moved, *arguments, out="new" if arguments else "out"
      )
      assert (code, err.count("\n")) == (2, 1)
      assert "put the questions of math500 into other prompts" in err


def test_an_evaluation_goes_on_and_is_compared_at_its_date(
  tmp_path, evaluated, monkeypatch
):
  weights = _weights(tmp_path, DATED)
  monkeypatch.setattr(dates, "of_seconds", lambda _: THEN)
  assert evaluated(weights)[0] == 0
  monkeypatch.setattr(dates, "of_seconds", lambda _: LATER)
  assert evaluated(weights)[0] == 0
  assert (
    evaluated(weights, "--against", str(tmp_path / "out"), out="new")[0] == 0
  )
  for out in ("out", "new"):
    found = json.loads((tmp_path / out / "settings.json").read_text())
    assert found["date"] == THEN
