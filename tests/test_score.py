"""Completions of a file are scored one by one."""

import json

import pytest

from bilevel_jax import score

TESTS = {"inputs": ["2", "3"], "outputs": ["4", "9"]}
ROWS = [
  {
    "id": "squares",
    "question": "Print the square.",
    "tests": TESTS,
    "completions": [
      "```python\nprint(int(input()) ** 2)\n```",
      "```python\nprint(4)\n```",
      "None.",
    ],
  }
]


@pytest.fixture
def run(tmp_path, capsys):
  def run(rows, *arguments):
    file = tmp_path / "completions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = score.main(["--data", str(file), *arguments])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err

  return run


def test_programs_are_scored(run):
  code, lines, err = run(ROWS, "--verifier", "code", "--deadline-s", "60")
  assert code == 0
  assert lines == [{"id": "squares", "reward": r} for r in (1.0, 0.0, 0.0)]
  assert "programs run in: " in err
  assert err.endswith("1 of 3 are right\n")


def test_the_share_of_tests_is_scored(run):
  code, lines, _ = run(
    ROWS, "--verifier", "code", "--score", "share", "--deadline-s", "60"
  )
  assert code == 0
  assert [line["reward"] for line in lines] == [1.0, 0.5, 0.0]


def test_other_verifiers_score_other_files(run):
  row = {"id": "1", "question": "1+1", "answer": "2", "completion": "it is 2"}
  code, lines, err = run([row], "--verifier", "number")
  assert (code, lines) == (0, [{"id": "1", "reward": 1.0}])
  assert err == "1 of 1 are right\n"


def test_what_cannot_be_scored_says_why(run):
  row = {"id": "1", "question": "1+1", "answer": "2", "completion": "it is 2"}
  code, (line,), err = run([row], "--verifier", "expression")
  assert (code, line["reward"]) == (0, None)
  assert "KeyError" in line["failure"]
  assert err == "0 of 1 are right\n"


@pytest.mark.parametrize(
  ("rows", "arguments", "sentence"),
  [
    ([{"question": "1", "answer": "1"}], ("number",), "--data must have a tex"),
    (
      [{"question": "1", "answer": "1"} | {"completion": "1"}],
      ("code",),
      "nee",
    ),
    (ROWS, ("code", "--isolation", "walls"), "sandbox.isolation must be one o"),
    (ROWS, ("code", "--workers", "0"), "--workers must be at least 1"),
    (ROWS, ("codes",), "reward.verifiers takes math"),
  ],
)
def test_bad_input_is_refused_in_a_sentence(run, rows, arguments, sentence):
  code, lines, err = run(rows, "--verifier", *arguments)
  assert (code, lines) == (2, [])
  assert err.startswith("error: ")
  assert sentence in err
