"""math-verify, called in two stages, is still math-verify."""

import math_verify
import pytest
import sympy
from latex2sympy2_extended import latex2sympy2

from bilevel_jax.rewards import symbolic

TEXTS = [
  r"\frac{1}{L C s^{2}+R C s+1}",
  r"x \in (-\infty, 2] \cup (3, \infty)",
  r"\left\lfloor\log _{2} n\right\rfloor+1",
  r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
  r"1 \pm \sqrt{19}",
  r"\sin 2x \cos x, f(n)=2n, k \geq 3",
  r"\text{east}",
  r"\sum_{k=1}^{n} k^2",
  "a = = b",
  "1 \u00a7 2",  # no token
]


@pytest.fixture
def in_two_stages(monkeypatch):
  monkeypatch.setattr(latex2sympy2, "PSParser", symbolic._in_two_stages())


def _read(text):
  try:
    return sympy.srepr(latex2sympy2.latex2sympy(text, is_real=True))
  except Exception as error:
    return type(error), str(error)


ONE_STAGE = latex2sympy2.PSParser
FULL = {text: _read(text) for text in TEXTS}


@pytest.mark.usefixtures("in_two_stages")
@pytest.mark.parametrize("text", TEXTS)
def test_two_stages_read_what_the_full_parser_reads(text):
  assert _read(text) == FULL[text]


@pytest.mark.usefixtures("in_two_stages")
def test_what_the_first_stage_reads_is_not_read_again(monkeypatch):
  stages, read = [], ONE_STAGE.math

  def spy(parser):
    stages.append(parser._interp.predictionMode.name)
    return read(parser)

  monkeypatch.setattr(ONE_STAGE, "math", spy)
  _read(r"\frac{x}{2}")
  assert stages == ["SLL"]
  _read("a = = b")
  assert stages == ["SLL", "SLL", "LL"]


def test_math_verify_is_left_as_it_was():
  assert symbolic.equivalent("2y", r"\boxed{2y}")
  assert latex2sympy2.PSParser is ONE_STAGE


@pytest.mark.parametrize(
  ("answer", "completion", "equal"),
  [
    ("8$,$4", r"\boxed{4, 8}", True),
    ("8$,$4", r"\boxed{8}", False),
    ("221,$8", r"\boxed{8, 221}", True),
    (r"(-\infty, 0) \cup\{1\}$.", r"\boxed{(-\infty,0)\cup\{1\}}", True),
    (r"(-\infty, 0) \cup\{1\}$.", r"\boxed{(-\infty,0)\cup\{2\}}", False),
    ("The answer is $5$", r"\boxed{5}", True),
    (r"\$5", r"\boxed{5}", True),
    ("$x=5$", "so $x = 5$", True),
  ],
)
def test_stray_dollar_signs_of_an_answer_do_not_count(
  answer, completion, equal
):
  assert symbolic.equivalent(answer, completion) is equal


def test_parsing_is_math_verifys(monkeypatch):
  seen = []
  monkeypatch.setattr(
    math_verify, "parse", lambda *a, **b: seen.append(a[0]) or []
  )
  symbolic._parse.cache_clear()
  symbolic.equivalent("x^9", "x^8")
  symbolic.equivalent("x^9", "x^7")
  assert seen == ["$x^9$", "x^8", "x^7"]  # each answer once
  symbolic._parse.cache_clear()
