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
]


@pytest.fixture
def readers():
  """The reader in two stages, and math-verify's own."""
  two_stages = symbolic._math_verify() and latex2sympy2._Latex2Sympy
  one_stage = two_stages.__mro__[1]
  assert one_stage.create_parser is not two_stages.create_parser
  return two_stages, one_stage


def _read(reader, text):
  try:
    return sympy.srepr(reader(is_real=True).parse(text))
  except Exception as error:
    return type(error)


@pytest.mark.parametrize("text", TEXTS)
def test_two_stages_read_what_the_full_parser_reads(readers, text):
  two_stages, one_stage = readers
  assert _read(two_stages, text) == _read(one_stage, text)


def test_what_the_first_stage_reads_is_not_read_again(readers, monkeypatch):
  two_stages, one_stage = readers
  made = []
  create = one_stage.create_parser
  monkeypatch.setattr(
    one_stage, "create_parser", lambda *a: made.append(a) or create(*a)
  )
  _read(two_stages, r"\frac{x}{2}")
  assert len(made) == 1
  _read(two_stages, TEXTS[-1])
  assert len(made) == 3


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
