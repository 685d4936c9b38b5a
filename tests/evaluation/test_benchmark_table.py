"""Where benchmarks come from, with a row of each as its hub page shows it."""

import re

import pytest

from bilevel_jax.evaluation import benchmark_table

ROWS = {
  "math500": {"unique_id": "test/7.json", "problem": "Q", "answer": "A"},
  "minerva_math": {"question": "Q", "answer": "A"},
  "olympiadbench": {
    "id": 7,
    "question": "Q",
    "final_answer": ["A"],
    "solution": ["S", "T"],
    "error": None,
  },
  "aime24": {"id": 7, "problem": "Q", "answer": "A", "solution": "S"},
  "aime25": {"id": "7", "problem": "Q", "answer": "A"},
  "amc23": {"id": 7, "question": "Q", "answer": "A", "url": "U"},
  "gsm8k": {"question": "Q", "answer": "S #### A"},
}


@pytest.mark.parametrize("name", benchmark_table.BENCHMARKS)
def test_a_benchmark_is_read_at_one_commit(name, monkeypatch):
  asked = []

  def load_dataset(*identity, revision, split):
    asked.append((*identity, split, revision))
    return [ROWS[name]]

  monkeypatch.setattr("datasets.load_dataset", load_dataset)
  (question,) = benchmark_table.load_questions(name, None)
  assert (question.question, question.answer) == ("Q", "A")
  ((hub, _, split, revision),) = asked
  assert re.fullmatch(r"[0-9a-f]{40}", revision), hub
  assert split in ("test", "train")


def test_all_rows_are_of_benchmarks():
  assert ROWS.keys() == benchmark_table.BENCHMARKS.keys()
