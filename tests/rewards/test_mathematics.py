"""What a mathematician who marks would say, answer by answer."""

import pytest

from bilevel_jax import types
from bilevel_jax.rewards import kinds, mathematics


def _is_right(completion, answer):
  question = types.Question("", "", answer, None, {})
  return mathematics.verify(completion, question) == 1


@pytest.mark.parametrize(
  "box", ["", "?", r"\ldots", "()", "$", r"\frac{}{}", r"\text{see above}"]
)
def test_a_box_that_says_nothing_is_no_answer(box):
  for text in ("We get $5$. {}", "The answer is 5. {}", "{} $5$", "{} 5"):
    assert not _is_right(text.replace("{}", rf"\boxed{{{box}}}"), "5")


@pytest.mark.parametrize(
  "completion",
  [
    r"\boxed{\frac{1}{2}} or \boxed{\text{3}}",
    r"\boxed{\frac{1}{2}}, \boxed{3}",
    r"\boxed{\frac{1}{2}} The final answer is $3$. I hope it is correct.",
    r"\boxed{\frac{1}{2}} The final answer is $3~$m. I hope it is correct.",
  ],
)
def test_one_completion_has_one_answer(completion):
  assert not _is_right(completion, r"\frac{1}{2}")
  assert _is_right(completion, "3")


@pytest.mark.parametrize(
  ("given", "answer", "right"),
  [
    ("1 1/2", "11/2", False),
    ("1 1/2", "1.5", True),
    ("-1 1/2", "-1.5", True),
    (r"2\ 1/2", "2.5", True),
    ("1 000", "1000", True),
    ("12 345 678", "12345678", True),
    ("5 6", "56", False),
    (r"5\ 6", "56", False),
    (r"5\quad 6", "56", False),
    (r"5\quad 6", "6, 5", True),
    ("32, 349", "32349", False),
    (r"\frac 3 8", "0.375", True),
    (
      r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
      r"\begin{pmatrix}1\\ 2.0\end{pmatrix}",
      True,
    ),
  ],
)
def test_white_space_between_digits_parts_them(given, answer, right):
  assert _is_right(rf"\boxed{{{given}}}", answer) is right
  assert _is_right(rf"\boxed{{{answer}}}", given) is right


@pytest.mark.parametrize(
  ("given", "answer", "right"),
  [
    ("25 dollars", "25", True),
    (r"\frac{5}{2} square inches", "2.5", True),
    ("25 million", "25", False),
    ("3 fourths", "3", False),
    ("3 cos x", "3", False),
    (r"25~\mathrm{kg}", "25", True),
    ("90\N{DEGREE SIGN}", r"90^\circ", True),
    ("\N{MINUS SIGN}5", "-5", True),
    (r"\textbf{(C)}\ 5", "5", True),
    (r"\text{(C) }\frac{1}{3}", r"\frac{1}{3}", True),
    (r"\textbf{(C)}", "5", False),
    (r"0.1\overline{6}", r"\frac16", True),
    (r"0.\overline{3}", "0.3", False),
    ("0.333333", r"\frac13", True),
    (r"\neq 3", "3", False),
    (r"\le 3", "3", False),
  ],
)
def test_units_labels_and_signs_are_read_as_they_are_meant(
  given, answer, right
):
  assert _is_right(rf"\boxed{{{given}}}", answer) is right


def test_closed_forms_are_not_judged_a_second_time(monkeypatch):
  judged = []
  monkeypatch.setattr(
    kinds.closed_forms, "equal", lambda *pair: judged.append(pair)
  )
  kinds.differ("east", "west", None)
  assert ("east", "west", None) not in judged
