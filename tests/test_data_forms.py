"""Runs on files of 30 rows, one in each form, with no setting but its path."""

import json

import numpy as np
import pytest

from bilevel_jax import config, errors, train
from bilevel_jax.training import sources
from tests import tiny_run


def _rows(form):
  for n in range(30):
    asked, said = f"{n}+1", f"{n}+1={n + 1}"
    user = {"role": "user", "content": asked}
    answer = {"role": "assistant", "content": said}
    yield {
      "question": {"question": asked, "solution": said},
      "text": {"prompt": f"{asked}=", "completion": str(n + 1)},
      "prompt": {"prompt": [user], "completion": [answer]},
      "messages": {"messages": [user, answer, user, answer]},
      "sharegpt": {
        "conversations": [
          {"from": "human", "value": asked},
          {"from": "gpt", "value": said},
        ]
      },
      "alpaca": {"instruction": asked, "input": "", "output": said},
      "preferences": {"prompt": asked, "chosen": said, "rejected": "1"},
      "verl": {
        "prompt": [user],
        "reward_model": {"style": "rule", "ground_truth": str(n + 1)},
        "data_source": "sums",
      },
    }[form]


def _settings(directory, tmp_path, form, method):
  path = tmp_path / f"{form}.jsonl"
  path.write_text("\n".join(map(json.dumps, _rows(form))))
  c = tiny_run.settings(directory)
  c.run_dir = str(tmp_path / "run")
  c.steps, c.checkpoints.export, c.checkpoints.every = 1, False, None
  c.method.name = method
  c.data.questions.task, c.data.questions.count = None, None
  c.data.questions.task_options = {}
  c.data.evaluation.task = None
  c.data.questions.path = str(path)
  c.data.max_demonstration_tokens = 64
  return c


@pytest.mark.usefixtures("programs_of_any_name")
@pytest.mark.parametrize(
  "form",
  [
    "question", "text", "prompt", "messages", "sharegpt", "alpaca",
    "preferences",
  ],
)  # fmt: skip
def test_sft_learns_from_every_form_without_answers(directory, tmp_path, form):
  c = _settings(directory, tmp_path, form, "sft")
  c.reward.verifiers = ("math",)
  last = train.run(config.parse(c))
  assert np.isfinite(last.metrics["sft/loss"])
  # A tokenizer without a chat template has each turn on its own.
  per_row = 2 if form == "messages" else 1
  assert len(last.run.streams.demonstrations) == 30 * per_row


def test_rl_reads_verls_answers_and_needs_some(directory, tmp_path):
  c = _settings(directory, tmp_path, "verl", "grpo")
  c.reward.verifiers = ("exact",)
  c.data.demonstrations_per_step = 0
  last = train.run(config.parse(c))
  assert last.completions[0]["answer"].isdigit()
  c = _settings(directory, tmp_path, "prompt", "grpo")
  c.run_dir, c.reward.verifiers = str(tmp_path / "other"), ("exact",)
  with pytest.raises(
    errors.ConfigError, match="lacks the field 'answer', whic"
  ):
    train.run(config.parse(c))


def test_shares_of_sources_are_kept_by_both_streams(directory, tmp_path):
  c = _settings(directory, tmp_path, "question", "mixed")
  few = tmp_path / "few.jsonl"
  few.write_text('{"question": "2*3", "solution": "2*3=6", "weight": 0.5}')
  c.data.questions.sources = (f"{c.data.questions.path}=3", f"{few}=1")
  c.data.questions.path = None
  settings = config.parse(c)
  model = sources.build_model(settings, sources.open_model(settings))
  streams = sources.build_streams(settings, model.tokenizer)
  asked, _, _ = streams.prompts.take(0, 400)
  assert sum(question.question == "2*3" for question in asked) == 100
  taken = streams.demonstrations.take(8, 400)
  assert sum(one.weight == 0.5 for one in taken) == 100


@pytest.mark.parametrize("kind", ["list", "dataset"])
def test_rows_from_python_stay_with_their_run(directory, tmp_path, kind):
  c = _settings(directory, tmp_path, "question", "sft")
  c.data.questions.path = None
  rows = list(_rows("prompt"))
  given = rows
  if kind == "dataset":
    given = pytest.importorskip("datasets").Dataset.from_list(rows)
  c.steps, c.checkpoints.every = 2, 1
  steps = train.steps(c, questions=given)
  first = next(steps)
  steps.close()
  kept = (tmp_path / "run" / "given_questions.jsonl").read_text().splitlines()
  assert [json.loads(line)["prompt"] for line in kept] == [
    row["prompt"] for row in rows
  ]
  c.resume = True
  with pytest.raises(errors.ConfigError, match="other rows than the questions"):
    next(train.steps(c, questions=rows[:-1]))
  (last,) = train.steps(c, questions=given)
  assert (first.number, last.number) == (1, 2)


def test_a_row_that_json_cannot_hold_is_refused(directory, tmp_path):
  c = _settings(directory, tmp_path, "question", "sft")
  with pytest.raises(errors.ConfigError, match=r"questions\[0\] must be a row"):
    next(train.steps(c, questions=[{"question": object()}]))
