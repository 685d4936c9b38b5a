"""Kinds of answers told apart, beside math-verify's judgement of the same."""

import json

import pytest

from bilevel_jax import types
from bilevel_jax.rewards import kinds, mathematics, symbolic
from tests import public_data

COLUMN = r"\begin{pmatrix}1\\2\end{pmatrix}"


@pytest.mark.parametrize(
  ("a", "b", "differ"),
  [
    ("Evelyn", "9", True),
    ("east", "2k+2", True),
    ("east", "west", True),
    ("east", "seat", False),
    ("east", "(1,2)", True),
    ("infinity", "5", False),  # infinity may be a value
    (r"\frac{270}7degrees", r"\frac{4}{9}", True),
    (r"\frac{270}7degrees", r"\frac{270}{7}", False),
    ("5apples", "(5,6)", True),
    ("3xyz", "3(zy)x", False),  # no unit
    (r"k\geqslant2", "3", True),
    (r"k\geqslant2", "2", False),  # math-verify may find that 2
    ("0<f(x)<1", "(0,1)", False),
    (r"(0,9)\cup(9,36)", "12", True),
    (r"(0,9)\cup(9,36)", "1,2,3", True),
    (r"(0,1]\cup(1,2)", "(0,2)", False),
    (COLUMN, "(1,2,3)", True),
    (COLUMN, "x=2", True),
    ("a=2,a=6", "20", True),
    ("x^2=4", r"\{2,-2\}", False),  # its solutions
    ("x=2+3", "6", True),
    ("x=2+3", "5", False),
    (r"\Deltap\approx-2x", "-2x", False),
    (r"\frac{d^{2}v}{dt^{2}}=\frac{v}{LC}", r"ml\ddot{\theta}=f(t)", True),
    (r"\sum_{k=1}^{n}k", r"\frac{n(n+1)}{2}", False),  # k is bound
    ("2m", r"\frac{1}{|n|}", False),  # a unit, perhaps
    ("x+|y|", r"2\times|y|", False),
    (r"x+\mathbb{1}", r"y+\mathbb{1}", True),
    ("C_{1}+|x|", "c_{2}+|x|", False),  # math-verify knows no capitals
  ],
)
def test_only_what_differs_in_every_reading_differs(a, b, differ):
  assert kinds.differ(a, b, None) is differ
  assert kinds.differ(b, a, None) is differ


def test_math_verify_judges_other_answers_of_a_benchmark_alike(monkeypatch):
  path = public_data.path("eval/math500.jsonl")
  rows = path.read_text("utf-8").splitlines()
  answers = [json.loads(row)["answer"] for row in rows]
  answers = [answer for answer in answers if not answer.isdigit()]
  parsed = []
  monkeypatch.setattr(
    symbolic, "equivalent", lambda *pair: parsed.append(pair) or 0
  )
  judge = symbolic._math_verify().verify
  parse = symbolic._parse
  for answer, other in zip(answers, answers[3:], strict=False):
    question = types.Question("", "", answer, None, {})
    judged = mathematics.verify(rf"\boxed{{{other}}}", question)
    if parsed:
      parsed.clear()
      continue
    gold, found = parse(f"${answer}$"), parse(rf"\boxed{{{other}}}")
    assert judge(gold, found, timeout_seconds=None) == judged, (answer, other)
