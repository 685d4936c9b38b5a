"""Pass rates of a policy: counted, written, gone on with."""

import json

import numpy as np
import pytest

from bilevel_jax import config, difficulty, errors
from bilevel_jax.data import pass_rates
from bilevel_jax.rollout import answers
from tests import tiny_run

SAMPLES = 4


@pytest.fixture
def settings(tmp_path):
  tiny_run.weights(tmp_path)
  c = tiny_run.settings(tmp_path)
  c.reward.verifiers = ("regex",)
  c.reward.pattern = "[0-4]"
  c.rollout.max_new_tokens = 4
  c.rollout.max_rows = 12  # three questions at once
  return config.parse(c)


def test_pass_rates_are_shares_of_the_samples(settings, tmp_path, monkeypatch):
  answer, seen = answers.answer, {}

  def watched(*arguments, **named):
    found = answer(*arguments, **named)
    for question, text in zip(found.questions, found.completions, strict=True):
      seen.setdefault(question.id, []).append(text)
    return found

  monkeypatch.setattr(answers, "answer", watched)
  path = tmp_path / "rates.jsonl"
  rows = difficulty.measure(settings, SAMPLES, path)
  assert rows == [json.loads(line) for line in path.read_text().splitlines()]
  assert len(rows) == len(seen) == settings.data.questions.count
  for row in rows:
    right = [any(c in "01234" for c in text) for text in seen[row["id"]]]
    assert len(right) == row["samples"] == SAMPLES
    assert row["pass_rate"] == np.mean(right)
    assert row["unscored"] == 0
  assert len({row["pass_rate"] for row in rows}) > 1
  questions = [
    type("Q", (), {"id": r["id"], "question": r["question"]}) for r in rows
  ]
  assert pass_rates.of_file(questions, str(path)) == [
    row["pass_rate"] for row in rows
  ]


def test_it_goes_on_where_it_stopped_to_the_same_bytes(settings, tmp_path):
  path = tmp_path / "rates.jsonl"
  difficulty.measure(settings, SAMPLES, path)
  whole = path.read_bytes()
  lines = whole.splitlines(keepends=True)
  path.write_bytes(b"".join(lines[:3]) + lines[3][:10])
  difficulty.measure(settings, SAMPLES, path)
  assert path.read_bytes() == whole
  with pytest.raises(errors.ConfigError, match="of other weights or settings"):
    difficulty.measure(settings, SAMPLES + 1, path)
