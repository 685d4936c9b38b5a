"""Closed forms against sympy's own judgement, and what is left unread."""

import fractions
import time

import pytest
import sympy

from bilevel_jax import types
from bilevel_jax.rewards import closed_forms, identities, mathematics, symbolic

X, Y = sympy.symbols("x y", positive=True)
FORMS = [
  (X + 1) ** 2,
  X**2 + 2 * X + 1,
  X**2 + 2 * X,
  sympy.sqrt(8),
  2 * sympy.sqrt(2),
  sympy.Rational(2, 3) * sympy.pi,
  2 * sympy.pi / 3,
  -X / (3 * Y),
  X * Y ** sympy.Rational(1, 3),
  sympy.exp(X) * Y,
  6 + 9 * sympy.I,
  sympy.root(27, 3),
  sympy.Integer(3),
]


def _latex(form):
  return mathematics._plain(sympy.latex(form))


def _matrix(rows):
  return rf"\begin{{pmatrix}}{rows}\end{{pmatrix}}"


def test_it_judges_as_sympy_does():
  read = 0
  for a in FORMS:
    for b in FORMS:
      judged = closed_forms.equal(_latex(a), _latex(b))
      equal = sympy.simplify(a - b) == 0
      if a.free_symbols == b.free_symbols:
        assert judged is equal, (a, b)
        read += 1
      else:
        assert not judged
  assert read > 60


@pytest.mark.parametrize(
  ("a", "b", "judged"),
  [
    ("1/2x", "x/2", None),  # x/2 to some, 1/(2x) to others
    (r"1\frac{1}{2}", "1.5", None),
    ("east", "seat", None),
    ("ab", "ba", None),
    ("f(x)", "f(x)", None),
    ("5m", "5", None),  # a unit, perhaps
    (r"3\cdot10^{8}m/s", r"3\cdot10^{8}", None),
    ("x+5", "5", False),
    ("x", "y", False),
    ("x^10", "x^{10}", None),
    ("2^{3^{2}}", "512", True),
    ("2^3^2", "512", None),
    ("-2^2", "-4", True),
    ("2^{-1}", "0.5", True),
    (r"\frac12", "0.5", True),
    (r"\sqrt2", "1.414214", True),
    (r"\sqrt2", "1.4142", False),
    ("3.83e35", r"3.83\times10^{35}", True),
    ("1e-9", "2e-9", False),  # math-verify: both are 0 to six decimals
    ("10^{20}+1", "10^{20}", False),
    ("10^{10^{10^{10}}}", "3", False),
    ("(1,2)", "(2,1)", False),
    ("1,2", r"\{2,1\}", True),
    ("(1,2),(3,4)", "(3,4),(1,2)", True),
    ("(1,2)", "[1,2]", None),
    ("(0,\\infty)", "(0,\\infty)", True),
    ("1,2", "1,2,3", False),
    ("1/0", "1", None),
    ("", "1", None),
    (")(", "1", None),
    ("x+", "x", None),
    (r"1\pm\sqrt{19}", r"1-\sqrt{19},1+\sqrt{19}", True),
    (r"1\pm\sqrt{19}", "-4", False),
    (r"\pm2", r"\{2,-2\}", True),
    (_matrix(r"1&2\\3&4"), _matrix(r"1&2\\3&4"), True),
    (_matrix(r"1&2\\3&4"), _matrix(r"1&2\\3&5"), False),
    (_matrix(r"1\\\frac12"), _matrix(r"1\\0.5"), True),
    (_matrix(r"1&2"), _matrix(r"1\\2"), None),
    (r"137\frac{1}{2}", "84", False),
    (r"137\frac{1}{2}", "68.5", None),
    ("17.5\\%", "10", False),
    ("17.5\\%", "0.175", None),
    (r"\frac{\log2}{\log3}", r"\frac{\log3}{\log2}", False),
    (r"\frac{\log2}{\log3}", r"\frac{\ln2}{\ln3}", None),
    (r"\log100", "2", None),
    ("7,14", "36", False),
    ("7,14", "7.14", None),
    ("x=1,y=2", "y=2,x=1", True),
    ("x=1,y=2", "y=2,x=3", False),
  ],
)
def test_what_is_ambiguous_is_left_unread(a, b, judged):
  assert closed_forms.equal(a, b) is judged
  assert closed_forms.equal(b, a) is judged


def test_a_question_may_bring_its_tolerance():
  question = lambda error: types.Question(
    "", "", r"7 \times 10^{35}", None, {"error": error}
  )
  text = r"\boxed{7.1 \cdot 10^{35}}"
  assert mathematics.verify(text, question("1e34")) == 1
  assert mathematics.verify(text, question("1e33")) == 0
  assert mathematics.verify(text, question(None)) == 0


def test_close_is_six_decimals_and_three_digits():
  third = fractions.Fraction(1, 3)
  assert identities.close(fractions.Fraction("0.333333"), third, None)
  assert not identities.close(fractions.Fraction("0.33333"), third, None)
  assert not identities.close(1e-8, 2e-8, None)


@pytest.mark.parametrize(
  "text",
  [
    "{" * 150 + "1" + "}" * 148,
    r"\frac{1}{" * 30 + "2" + "}" * 30,
    "9" * 299,
    "9^{99}" * 40,
    "*".join(["9^{999}"] * 30),
    "(1," * 70 + "1" + ")" * 70,
    ",".join(["x"] * 150),
  ],
  ids=lambda text: text[:9],
)
def test_a_hostile_text_costs_no_time(text):
  start = time.process_time()
  closed_forms.equal(text, text[::-1])
  closed_forms.equal(text, "x,1")
  closed_forms.equal(text, text)
  assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
  ("a", "b", "judged"),
  [
    ("13", "(1,2)", False),
    ("1", "(1,2)", False),
    ("(1,2,3)", "[1,2]", False),
    ("2", "2,2", None),  # one value, as a set
    ("(1,2)", r"\{1,2\}", None),
    ("36", "7,14,18", False),
    ("1,000x", "1000x", None),  # thousands
    ("0,5x", "0.5x", None),  # decimals
    ("5m", "6", False),
    ("5m", "6s", False),
    ("5m", "5s", None),
    (r"2.2\tau", r"1+\sqrt{3}", False),
    (r"\frac{1}{4p^2}", "t", False),
    (r"\frac{3m}{2}", "1.5", None),
    (r"\arcsin(1)", r"\frac{\pi}{2}", True),
    ("5!", "120", True),
    ("2^3!", "64", None),
    ("3!!", "3", None),
    ("(10^{9})!", "3", None),
  ],
)
def test_what_differs_in_any_reading_is_different(a, b, judged):
  assert closed_forms.equal(a, b) is judged
  assert closed_forms.equal(b, a) is judged


@pytest.mark.parametrize(
  ("completion", "answer", "equal"),
  [
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", "12", False),
    ("\\boxed{16}", r"\frac{d^2v}{dt^2}+v=\frac{v_i}{LC}", False),
    (r"\boxed{2+3=5}", "5", True),
    (r"\boxed{2+3=5}", "6", False),
    (r"\boxed{x=5 \text{ or } x=6}", "7", False),
    (r"\boxed{\{2,-2\}}", "x^2=4", True),
    (r"$\boxed{2}$ and $\boxed{-2}$", r"$\{2,-2\}$", True),
    (r"$\boxed{2}$, $\boxed{-2}$", r"$\{2,-2\}$", True),
  ],
)
def test_kinds_of_answers_are_told_apart_as_math_verify_does(
  completion, answer, equal
):
  question = types.Question("", "", answer, None, {})
  assert mathematics.verify(completion, question) == equal
  assert symbolic.equivalent(answer, completion) == equal
