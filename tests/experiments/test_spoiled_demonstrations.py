"""The study of spoiled demonstrations: its runs, and what its page says."""

import collections
import shutil

import pytest

from bilevel_jax import config
from bilevel_jax.data import corpora
from bilevel_jax.runs import records
from experiments import spoiled_demonstrations as study

_ARMS = [(part, arm) for part, arms in study.PARTS.items() for arm in arms]


@pytest.mark.parametrize(("part", "arm"), _ARMS)
def test_every_run_has_the_demonstrations_that_it_says(part, arm, tmp_path):
  settings = config.parse(study.settings(tmp_path, part, arm, 2))
  found = corpora.load(settings.data.demonstrations)
  kinds = collections.Counter(question.meta["kind"] for question in found)
  if arm == "oracle":
    assert set(kinds) == {"worked"}
    assert len(found) == 16 or (part == "once" and 900 < len(found) < 1100)
  elif part == "once":
    assert len(found) == 2000
    assert 900 < kinds["guess"] < 1100
    # Each is seen at most once.
    assert settings.steps * settings.data.demonstrations_per_step < 2000
  else:
    assert sum(kinds.values()) == 64
    assert kinds["worked"] == (64 if part == "clean" else 16)
  rollouts = settings.data.prompts_per_step * 8
  assert rollouts == (16 if part == "sparse" else 64)


def test_good_ones_are_those_of_the_run_and_the_same_for_slips(tmp_path):
  questions = {}
  for part, arm in (
    ("guesses", "oracle"),
    ("guesses", "bridge"),
    ("slips", "bridge"),
  ):
    parsed = config.parse(study.settings(tmp_path, part, arm, 3))
    questions[part, arm] = {
      (question.question, question.solution)
      for question in corpora.load(parsed.data.demonstrations)
      if question.meta["kind"] == "worked"
    }
  assert len(questions["guesses", "oracle"]) == 16
  assert len({frozenset(found) for found in questions.values()}) == 1


def test_how_often_a_good_one_has_the_larger_weight():
  assert study.auroc([2, 3], [0, 1]) == 1
  assert study.auroc([0, 1], [2, 3]) == 0
  assert study.auroc([1, 1], [1, 1, 1]) == 0.5
  assert study.auroc([0, 2], [1]) == 0.5


def _fake(accuracies):
  """A stand-in for a run, which counts."""
  ran = []

  def run(out, part, arm, seed):
    ran.append((part, arm, seed))
    (out / part / arm / str(seed)).mkdir(parents=True)
    return {
      "part": part,
      "arm": arm,
      "seed": seed,
      "accuracy": accuracies[arm] + seed / 100,
      "steps": 50,
      "steps_with_signal": 40,
    }

  return ran, run


def test_what_is_done_is_not_run_again(tmp_path, monkeypatch):
  ran, run = _fake({"mixed": 0.2, "bridge": 0.5, "oracle": 0.6, "grpo": 0.3})
  monkeypatch.setattr(study, "_run", run)
  ask = ["--out", str(tmp_path), "--parts", "guesses", "clean", "--seeds"]
  assert study.main([*ask, "1"]) == 0
  first = list(ran)
  assert first == [
    ("guesses", "mixed", 1),
    ("guesses", "bridge", 1),
    ("guesses", "oracle", 1),
    ("guesses", "grpo", 1),
    ("clean", "mixed", 1),
    ("clean", "bridge", 1),
  ]
  # One was stopped before its result.
  shutil.rmtree(tmp_path / "clean/bridge/1")
  assert study.main([*ask, "1", "2"]) == 0
  again = ran[len(first) :]
  assert again == [first[-1], *((part, arm, 2) for part, arm, _ in first)]
  rows = records.read_records(tmp_path / "results.jsonl")
  done = {(row["part"], row["arm"], row["seed"]) for row in rows}
  assert done == {*first, *again}
  page = (tmp_path / "results.md").read_text()
  # 0.3 of 0.4 on the way to the oracle, with either seed; 0.3 more.
  assert "| bridge | +30.0% (+30.0% to +30.0%) | 75% 75% | 75% |" in page
  assert "Runs done: 12 of 75." in page
  assert (
    "| mixed | 21.0% (1) 22.0% (2) | 21.5% | 21.5% (15.1% to 27.9%) |" in page
  )
