"""Rewards of TRL's and verl's form run as their files have them."""

import numpy as np
import pytest

from bilevel_jax import types
from bilevel_jax.rewards import pool, verifiers

FILE = '''
def trl_accuracy(completions, solution, **kwargs):
  """As TRL's page has it, for dialogues."""
  said = [completion[0]["content"] for completion in completions]
  return [float(s in text) for text, s in zip(said, solution, strict=True)]

def trl_level(prompts, completions, level, trainer_state=None):
  """None where the row has no level that it knows."""
  known = {"easy": 1.0}
  return [known.get(one) for one in level]

def trl_text(prompts, completions, **kwargs):
  return [float(isinstance(p, str) and p + c == "1+1=2")
          for p, c in zip(prompts, completions)]

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
  """verl's."""
  right = solution_str.endswith(ground_truth) and extra_info["index"] == 3
  return {"score": float(right), "acc": right, "source": data_source}

def two(completions, **kwargs):
  return [1.0, 2.0]
'''
USER = {"role": "user", "content": "1+1?"}
QUESTION = types.Question(
  "q", "1+1?", "2", None,
  {"level": "easy", "data_source": "sums", "extra_info": {"index": 3}},
  types.Dialogue((USER,), 1),
)  # fmt: skip


@pytest.fixture
def own(tmp_path, monkeypatch):
  (tmp_path / "theirs.py").write_text(FILE)
  monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
  ("name", "question", "completion", "value"),
  [
    ("trl_accuracy", QUESTION, "so 2", 1.0),
    ("trl_accuracy", QUESTION, "so 3", 0.0),
    ("trl_level", QUESTION, "", 1.0),
    ("trl_text", QUESTION._replace(question="1+1=", dialogue=None), "2", 1.0),
    ("trl_text", QUESTION, "2", 0.0),
    ("compute_score", QUESTION, "so 2", 1.0),
    ("compute_score", QUESTION._replace(answer="3"), "so 2", 0.0),
  ],
)
def test_each_form_is_called_as_it_wants(name, question, completion, value):
  parts = verifiers.build({f"theirs.{name}": 1.0})
  assert verifiers.score(parts, completion, question) == (value, value >= 1)


@pytest.mark.usefixtures("own")
def test_none_leaves_a_row_out_of_one_part_and_not_of_the_others():
  parts = verifiers.build({"theirs.trl_level": 2.0, "theirs.trl_accuracy": 0.5})
  hard = QUESTION._replace(meta={**QUESTION.meta, "level": "hard"})
  assert verifiers.score(parts, "2", QUESTION) == (2.5, True)
  assert verifiers.score(parts, "2", hard) == (0.5, True)
  assert verifiers.score(parts, "3", hard) == (0.0, False)
  assert "each returned None" in verifiers.score(parts[:1], "2", hard)
  parts = verifiers.build({"theirs.two": 1.0})
  assert "must return a finite number" in verifiers.score(parts, "", QUESTION)


@pytest.mark.usefixtures("own")
def test_processes_see_the_dialogue_and_say_what_each_part_is_worth():
  hard = QUESTION._replace(meta={**QUESTION.meta, "level": "hard"})
  names = {"theirs.trl_accuracy": 1.0, "theirs.trl_level": 1.0}
  with pool.Scorer(names, deadline_s=60.0, workers=1) as scorer:
    scores = scorer.score(["2", "3"], [QUESTION, hard])
  np.testing.assert_array_equal(scores.rewards, [2.0, 0.0])
  np.testing.assert_array_equal(scores.values, [[1.0, 1.0], [0.0, np.nan]])
  assert scores.scored.all()
