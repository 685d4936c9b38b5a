"""A run whose questions are of mathematics and of programs."""

import json

import pytest

from bilevel_jax import config, errors, train
from tests import tiny_run

ROWS = [
  {"id": "1", "question": "1+1", "answer": "2", "of": "sums"},
  {
    "id": "2",
    "question": "f is",
    "of": "programs",
    "tests": {"inputs": ["2"], "outputs": ["4"]},
  },
]


def _settings(tmp_path, rows):
  file = tmp_path / "rows.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  tiny_run.weights(tmp_path)
  c = tiny_run.settings(tmp_path)
  c.steps = 1
  c.method.name = "grpo"
  c.data.demonstrations_per_step = 0
  c.data.questions.task = None
  c.data.questions.count = None
  c.data.questions.task_options = {}
  c.data.questions.path = str(file)
  c.data.evaluation.task = None
  c.data.evaluation.count = None
  c.reward.verifiers = ("exact", "code")
  c.reward.verifiers_by = "of"
  c.reward.verifier_names = {"sums": "exact", "programs": "code"}
  c.reward.deadline_s = 60.0
  c.reward.workers = 1
  c.sandbox.deadline_s = 30.0
  return config.parse(c)


def test_mathematics_and_programs_train_together(tmp_path, capsys):
  settings = _settings(tmp_path, ROWS)
  train.run(settings)
  (line,) = [m for m in tiny_run.logged(settings.run_dir) if m["step"] == 1]
  assert line["rl/unscorable"] == 0
  saved = json.loads((tmp_path / "run" / "config.json").read_text())
  isolation = saved["isolation"].split(",")[0]
  assert isolation in ("namespaces", "landlock")
  assert saved["config"]["sandbox"]["isolation"] == "auto"
  said = " ".join("".join(capsys.readouterr()).split())
  assert f"programs run in: {isolation}" in said


@pytest.mark.parametrize(
  ("changed", "words"),
  [
    ({"of": "others"}, "of question 2 must name one of exact, code, got 'oth"),
    ({"tests": [3]}, "question 2: ValueError: question 2 has no tests"),
  ],
)
def test_a_question_that_cannot_be_scored_is_refused(tmp_path, changed, words):
  settings = _settings(tmp_path, [ROWS[0], ROWS[1] | changed])
  with pytest.raises(errors.ConfigError, match=words):
    train.run(settings)
