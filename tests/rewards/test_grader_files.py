"""The verifier of mathematics against published judgements of answers."""

import json
import pathlib
import time

import pytest

from bilevel_jax import types
from bilevel_jax.rewards import pool

FILES = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "grader"
# These rows of math-verify's tests ask for other settings than its defaults.
OTHER_SETTINGS = {"precision", "strict", "allow_set_relation_comp"}


@pytest.fixture(scope="module")
def scorer():
  with pool.Scorer({"math": 1.0}, deadline_s=20.0) as scorer:
    yield scorer


def _agreement(scorer, name, boxed, every=1):
  path = FILES / f"{name}.jsonl"
  if not path.is_file():
    pytest.skip(f"{path} is not here")
  rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
  rows = [
    row for row in rows if not OTHER_SETTINGS & row.get("meta", {}).keys()
  ]
  rows = rows[::every]
  texts = [
    rf"\boxed{{{row['pred']}}}" if boxed else row["pred"] for row in rows
  ]
  questions = [types.Question("", "", row["gold"], None, {}) for row in rows]
  start = time.monotonic()
  scores = scorer.score(texts, questions)
  rate = len(rows) / (time.monotonic() - start)
  assert scores.scored.all()
  agree = [
    row["equal"] == correct
    for row, correct in zip(rows, scores.correct.tolist(), strict=True)
  ]
  share = sum(agree) / len(agree)
  print(f"{name}: {share:.2%} of {len(rows)} agree, {rate:.0f} per second")
  return share


def test_agrees_on_every_gsm8k_answer(scorer):
  assert _agreement(scorer, "gsm8k_model_answers", boxed=True) == 1


def test_agrees_on_whole_answers_of_a_model(scorer):
  # The one exception says that 10000 is not 10{,}000.
  share = _agreement(scorer, "qwen_math_cot100_fulltext", boxed=False)
  assert share >= 723 / 724


def test_agrees_with_the_tests_of_math_verify(scorer):
  # The four exceptions are in docs/grading.md.
  assert _agreement(scorer, "math_verify", boxed=False) >= 236 / 240


def test_agrees_on_equivalent_latex(scorer):
  # The two exceptions say that a list is not the same in another order.
  share = _agreement(scorer, "hendrycks_math_equivalence", boxed=True)
  assert share >= 14 / 16


def test_agrees_on_olympiad_answers(scorer):
  assert _agreement(scorer, "olympiadbench_scoring", boxed=True) == 1


def test_agrees_on_texts_normalised_beyond_mathematics(scorer):
  # The seven exceptions lost an `and`, a unit, or half of a command.
  share = _agreement(scorer, "math_boxed_vs_normalised", boxed=True)
  assert share >= 1002 / 1009


def test_closed_forms_are_judged_in_no_time(scorer):
  texts = [
    rf"\boxed{{\frac{{{n}\sqrt{{{n}}}}}{{2x}} + {n}}}" for n in range(400)
  ]
  questions = [
    types.Question("", "", rf"{n + 1}+\frac{{\sqrt{{{n}}}}}{{x}}", None, {})
    for n in range(400)
  ]
  start = time.monotonic()
  scores = scorer.score(texts, questions)
  assert scores.scored.all()
  assert not scores.correct.any()
  rate = len(texts) / (time.monotonic() - start)
  print(f"closed forms: {rate:.0f} per second")
  assert rate > 100  # the parser does 20 a second; a busy machine is slow
