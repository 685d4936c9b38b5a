"""The verifier of mathematics against published judgements of answers."""

import time

import pytest

from benchmarks import grader
from bilevel_jax import types
from bilevel_jax.rewards import pool
from tests import public_data


@pytest.fixture(scope="module")
def scorer():
  with pool.Scorer({"math": 1.0}, deadline_s=20.0) as scorer:
    yield scorer


def _agreement(scorer, name):
  pairs = grader.labelled(public_data.path(f"grader/{name}.jsonl").parent, name)
  assert pairs
  questions = [types.Question("", "", p.answer, None, p.meta) for p in pairs]
  start = time.monotonic()
  scores = scorer.score([pair.completion for pair in pairs], questions)
  rate = len(pairs) / (time.monotonic() - start)
  assert scores.scored.all()
  agree = [
    pair.label == correct
    for pair, correct in zip(pairs, scores.correct.tolist(), strict=True)
  ]
  share = sum(agree) / len(agree)
  print(f"{name}: {share:.2%} of {len(pairs)} agree, {rate:.0f} per second")
  return share


def test_agrees_on_every_gsm8k_answer(scorer):
  assert _agreement(scorer, "gsm8k_model_answers") == 1


def test_agrees_on_whole_answers_of_a_model(scorer):
  # The one exception says that 10000 is not 10{,}000.
  share = _agreement(scorer, "qwen_math_cot100_fulltext")
  assert share >= 723 / 724


def test_agrees_with_the_tests_of_math_verify(scorer):
  # The four exceptions are in docs/grading.md.
  assert _agreement(scorer, "math_verify") >= 236 / 240


def test_agrees_on_equivalent_latex(scorer):
  # The two exceptions say that a list is not the same in another order.
  share = _agreement(scorer, "hendrycks_math_equivalence")
  assert share >= 14 / 16


def test_agrees_on_olympiad_answers(scorer):
  assert _agreement(scorer, "olympiadbench_scoring") == 1


def test_agrees_on_texts_normalised_beyond_mathematics(scorer):
  # The seven exceptions lost an `and`, a unit, or half of a command.
  share = _agreement(scorer, "math_boxed_vs_normalised")
  assert share >= 1002 / 1009


def test_closed_forms_are_judged_in_no_time(scorer):
  texts = [
    rf"\boxed{{\frac{{{n}\sqrt{{{n}}}}}{{2x}} + {n}}}" for n in range(400)
  ]
  questions = [
    types.Question("", "", rf"{n + 1}+\frac{{\sqrt{{{n}}}}}{{x}}", None, {})
    for n in range(400)
  ]
  # Not to wait for them below: the processes start with imports.
  scorer.score(texts[:2], questions[:2])
  start = time.monotonic()
  scores = scorer.score(texts, questions)
  assert scores.scored.all()
  assert not scores.correct.any()
  rate = len(texts) / (time.monotonic() - start)
  print(f"closed forms: {rate:.0f} per second")
  assert rate > 100  # the parser does 20 a second; a busy machine is slow
