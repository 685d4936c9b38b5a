"""An evaluation, question by question, beside transformers' generate."""

import json

import pytest

pytest.importorskip("torch", reason="needs the extra `parity`")

from benchmarks import compare_with_transformers
from bilevel_jax import evaluate
from tests import tiny_run


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
  """A greedy evaluation of random weights on six questions."""
  path = tmp_path_factory.mktemp("transformers")
  tiny_run.weights(path)
  rows = [
    {"question": f"{n}+{n * n}", "answer": str(n + n * n)} for n in range(6)
  ]
  (path / "gsm8k_test.jsonl").write_text("\n".join(map(json.dumps, rows)))
  code = evaluate.main(
    [
      *("--weights", str(path / "policy"), "--data", str(path)),
      *("--benchmarks", "gsm8k", "--verifier", "number", "--rows", "4"),
      *("--template", "{question}=", "--max-new-tokens", "12"),
      *("--dtype", "float32", "--out", str(path / "out")),
    ]
  )
  assert code == 0
  return path / "out"


def _compared(evaluation):
  assert compare_with_transformers.main([str(evaluation), "--rows", "4"]) == 0
  found = json.loads((evaluation / "transformers.json").read_text())
  return found["gsm8k"]


def test_greedy_answers_are_those_of_transformers(evaluation, capsys):
  found = _compared(evaluation)
  assert found["same_text"] == found["graded_alike"] == 6
  assert found["correct"] == found["correct_by_transformers"]
  assert found["parted"] == []
  assert "they do not" in capsys.readouterr().out


def test_texts_that_part_are_named_with_the_token(evaluation):
  path = evaluation / "records" / "gsm8k.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  text = lines[2]["completions"][0]
  lines[2]["completions"] = [text[:3] + "@" + text[4:]]
  lines[2]["correct"] = [not lines[2]["correct"][0]]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  found = _compared(evaluation)
  assert found["same_text"] == found["graded_alike"] == 5
  (parted,) = found["parted"]
  assert (parted["id"], parted["token"]) == (lines[2]["id"], 3)
  assert parted["margin"] > 0
  assert not parted["graded_alike"]


def test_what_is_not_greedy_is_refused(evaluation, capsys):
  path = evaluation / "settings.json"
  settings = json.loads(path.read_text()) | {"temperature": 0.5}
  path.write_text(json.dumps(settings))
  assert compare_with_transformers.main([str(evaluation)]) == 2
  assert "must be greedy" in capsys.readouterr().err
  assert compare_with_transformers.main([str(evaluation.parent)]) == 2
  assert "has no settings.json" in capsys.readouterr().err
