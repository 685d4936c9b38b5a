"""The grader's benchmark: its pairs, what it counts, and one whole line."""

import json

from benchmarks import grader

ROWS = [
  {"answer": "12", "meta": {"error": "1"}},
  {"answer": r"\frac{3}{4}"},
  {"answer": "x"},
  {"answer": "9"},
]


def _texts(kind):
  pairs = grader.KINDS[kind](ROWS * 4)
  return [(pair.completion[7:-1], pair.answer) for pair in pairs]


def test_pairs_are_of_the_kind_that_they_are_called():
  answers = [row["answer"] for row in ROWS]
  assert _texts("right")[:4] == list(zip(answers, answers, strict=True))
  assert _texts("wrong")[:4] == list(
    zip(answers[1:] + answers[:1], answers, strict=True)
  )
  # Digits in turn; 9 becomes 0, and what has no digit is left out.
  assert _texts("near")[:4] == [
    ("22", "12"),
    (r"\frac{3}{5}", r"\frac{3}{4}"),
    ("0", "9"),
    ("22", "12"),
  ]
  assert [answer for _, answer in _texts("group")] == ["12"] * 8 + [
    r"\frac{3}{4}"
  ] * 8


def test_graders_count_what_they_parse_and_keep_a_questions_meta(monkeypatch):
  pairs = [
    grader.Pair(r"\boxed{13}", "12", {"error": "1"}, None),
    grader.Pair(r"\boxed{13}", "12", {}, None),
    grader.Pair(r"\boxed{x>2}", "2<x", {}, None),
  ]
  symbolic = grader.symbolic
  monkeypatch.setattr(
    symbolic, "equivalent", symbolic.equivalent
  )  # put back at the end
  ours = grader.grade(pairs, ours=True)
  alone = grader.grade(pairs, ours=False)
  assert ours.verdicts == [True, False, True]
  assert alone.verdicts == [False, False, True]
  assert (ours.parsed, alone.parsed) == (1, 0)
  assert ours.seconds > 0


def test_a_line_has_the_agreement_of_both_graders(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setenv("COLUMNS", "120")  # of the terminal
  (tmp_path / "grader").mkdir()
  rows = [
    {"gold": "5", "pred": "5.0", "equal": True},
    {"gold": r"1 \pm 2", "pred": "7", "equal": True},
  ]
  path = tmp_path / "grader" / "olympiadbench_scoring.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  assert grader.main(["--data", str(tmp_path)]) == 0
  output = capsys.readouterr().out
  assert "50.00% / 50.00%" in output
  assert "│ 2" in output


def test_a_folder_without_data_is_an_error(tmp_path, capsys):
  assert grader.main(["--data", str(tmp_path)]) == 2
  assert "no eval/*.jsonl or grader/*.jsonl" in capsys.readouterr().out
