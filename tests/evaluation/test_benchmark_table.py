"""Where benchmarks come from, with a row of each as its hub page shows it."""

import collections
import contextlib
import json
import re

import pytest

from bilevel_jax import errors, types
from bilevel_jax.evaluation import asking, benchmark_prompts, benchmark_table

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
  "humaneval": {
    "task_id": "HumanEval/7",
    "prompt": "def f(x):\n",
    "entry_point": "f",
    "canonical_solution": "  return x",
    "test": "def check(candidate):\n  assert candidate(1) == 1",
  },
  "mbpp": {
    "task_id": 7,
    "text": "Q",
    "code": "def f(x): return x",
    "test_list": ["assert f(1) == 1"],
    "test_setup_code": "",
  },
  "livecodebench": {
    "question_id": "7",
    "question_content": "Q",
    "starter_code": "",
    "contest_date": "2024-08-10T00:00:00",
    "public_test_cases": '[{"input": "1", "output": "1"}]',
    "private_test_cases": "[]",
    "metadata": "{}",
  },
  "gpqa_diamond": {
    "Record ID": "rec7",
    "Question": "Q",
    "Correct Answer": "right",
    "Incorrect Answer 1": "wrong one",
    "Incorrect Answer 2": "wrong two",
    "Incorrect Answer 3": "wrong three",
    "Explanation": "E",
  },
}


# What is asked, and what answers it.
ASKED = {
  "humaneval": ("def f(x):\n", ""),
  "mbpp": ("Q\nYour code should pass these tests:\nassert f(1) == 1", ""),
  "livecodebench": (
    "Q\n\nRead the inputs from stdin, solve the problem and write the answer "
    "to stdout (do not directly test on the sample inputs).",
    "",
  ),
  "gpqa_diamond": (
    "Q\n\nA) wrong one\nB) wrong three\nC) wrong two\nD) right",
    "D",
  ),
}


@pytest.mark.parametrize("name", benchmark_table.BENCHMARKS)
def test_a_benchmark_is_read_at_one_commit(name, monkeypatch, tmp_path):
  asked = []

  def download(hub, file, *, repo_type, revision):
    asked.append((hub, "test", revision))
    assert repo_type == "dataset"
    row = ROWS[name] | {"question_id": file}
    (tmp_path / file).write_text(json.dumps(row))
    return str(tmp_path / file)

  monkeypatch.setattr("huggingface_hub.hf_hub_download", download)

  def load_dataset(*identity, revision, split):
    asked.append((*identity, split, revision))
    return [ROWS[name]]

  monkeypatch.setattr("datasets.load_dataset", load_dataset)
  question, *others = benchmark_table.load_questions(name, None)
  assert (question.question, question.answer) == ASKED.get(name, ("Q", "A"))
  assert len(others) == len(asked) - 1
  hub, *_, split, revision = asked[0]
  assert re.fullmatch(r"[0-9a-f]{40}", revision), hub
  assert split in ("test", "train")


def test_all_rows_are_of_benchmarks():
  assert ROWS.keys() == benchmark_table.BENCHMARKS.keys()


def test_the_days_of_a_benchmark(tmp_path):
  rows = [
    {"id": str(day), "question": "Q", "answer": "", "tests": ["assert f()"]}
    | {"contest_date": f"2024-08-{day:02}T00:00:00"}
    for day in (1, 2, 3, 4)
  ]
  file = tmp_path / "livecodebench.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))

  def ids(days):
    within = benchmark_table.days(days)
    found = benchmark_table.load_questions(
      "livecodebench", tmp_path, within=within
    )
    return [question.id for question in found]

  assert ids(None) == ["1", "2", "3", "4"]
  assert ids("2024-08-02..2024-08-03") == ["2", "3"]
  assert ids("2024-08-04..2024-09-01") == ["4"]
  with pytest.raises(errors.ConfigError, match="must have questions of livec"):
    ids("2024-09-01..2024-10-01")
  for text in ("2024-08", "2024-09-01..2024-08-01", "a..b"):
    with pytest.raises(errors.ConfigError, match=r"^--days takes the first"):
      benchmark_table.days(text)


def test_the_right_choice_is_in_every_place():
  places = collections.Counter()
  for number in range(400):
    question = types.Question(
      str(number), "Q", "right", None, ROWS["gpqa_diamond"]
    )
    posed = benchmark_prompts.with_choices(question)
    assert f"{posed.answer}) right" in posed.question.splitlines()
    places[posed.answer] += 1
    assert benchmark_prompts.with_choices(question) == posed
  # 4.3 standard deviations of a share of a quarter.
  assert min(places[letter] for letter in "ABCD") > 100 - 37


RIGHT = {
  "humaneval": "So:\n```python\ndef f(x): return x\n```",
  "mbpp": "```python\ndef f(x):\n  return x\n```",
  "livecodebench": "```python\nprint(input())\n```",
  "gpqa_diamond": r"Thus \boxed{D}.",
}


def test_answers_are_scored_by_the_verifier_of_their_benchmark(
  monkeypatch, tmp_path
):
  monkeypatch.setattr(
    "datasets.load_dataset", lambda hub, *_, **__: [of_hub[hub]]
  )
  of_hub = {
    benchmark_table.BENCHMARKS[name].source.hub: row
    for name, row in ROWS.items()
  }
  (tmp_path / "livecodebench.jsonl").write_text(
    json.dumps(ROWS["livecodebench"] | {"id": "7", "question": "Q"})
  )
  asked = {
    name: benchmark_table.load_questions(
      name, tmp_path if name == "livecodebench" else None
    )
    for name in RIGHT
  }
  with contextlib.ExitStack() as started:
    scorers = asking.scorers(asked, "math", "auto", started)
    assert scorers["humaneval"] is scorers["mbpp"]
    assert scorers["mbpp"].isolation
    for name, (question,) in asked.items():
      wrong = RIGHT[name].replace("{D", "{Z").replace("x)", "x) + 1")
      wrong = wrong.replace("input()", "2").replace("return x", "return 7")
      scores = scorers[name].score([RIGHT[name], wrong], [question] * 2)
      assert scores.scored.all()
      assert scores.rewards.tolist() == [1.0, 0.0], name
