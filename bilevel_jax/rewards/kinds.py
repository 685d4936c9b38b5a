"""Answers told apart by their kind, before any of them is parsed.

Every rule here says only that two answers differ, however they are read: a
value is no matrix, no interval and no inequality, of an equation it can only
equal the right side, and what has a letter of its own is another formula.
"""

import re

from bilevel_jax.rewards import closed_forms, extraction, identities

_SEVERAL = re.compile(r"[,=;]|\\\{")
_MATRIX = re.compile(r"\\+begin\{([pb]matrix)\}.*\\+end\{\1\}")
_UNION = re.compile(r"\\c[ua]p(?![a-zA-Z])")
_INTERVAL = re.compile(r"[\[(][^,]*,[^,]*[\])]")
_ORDER = r"[<>]|\\(?:leq?|geq?|leqslant|geqslant|lt|gt|neq?)(?![a-zA-Z])"
_RELATION = _ORDER + r"|\\(?:in|sim|to|iff|implies)(?![a-zA-Z])"
# What has a relation, or two equations, is not one value.
_NO_VALUE = re.compile(_RELATION + r"|=[^=]*,[^=]*=")
_NO_EQUATION = re.compile(
  _RELATION + r"|\\approx|[,;:]|or|and|\\(?:pm|mp|lor|land|c[ua]p|quad|begin)"
)
_UNIT = re.compile(
  r"(?P<value>.*[\d})!])(?:\{\})?"
  r"(?P<unit>(?:[a-zA-Z]{2}|\\circ)[a-zA-Z{}/]*(?:\^\{?\d\}?)?)"
)
_WORDS = re.compile(r"(?!.*(?:and|or|inf|percent|pct|sqrt))[a-zA-Z{}()]{2,}")
_SUBSCRIPT = re.compile(r"_(?:\w|\\[a-zA-Z]+|\{[^{}]*\})")
_LETTER = re.compile(
  r"\\(?:var)?((?i:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda"
  r"|mu|nu|rho|sigma|tau|phi|chi|psi|xi|omega))(?![a-zA-Z])|\\[a-zA-Z]+"
  r"|([a-zA-Z])"
)
# Words, and what binds a letter or takes it away.
_UNSURE = re.compile(
  _RELATION + r"|\\approx|or|and|(?<![\\a-zA-Z])[a-zA-Z]{3}|[|:'\"&]"
  r"|\\(?:sum|prod|int|lim|partial|mid|mod|exists|forall)"
)
_CONSTANTS = frozenset("eid")  # and d, which may be a differential's


def differ(a: str, b: str, tolerance: float | None) -> bool:
  """Returns whether two answers differ in every reading; False: perhaps not.

  They are such as `closed_forms.equal` has left open.

  Args:
    a: LaTeX without white space and spacing commands.
    tolerance: greatest difference of equal numbers.
  """
  sides = _side_like(a, b), _side_like(b, a)
  if sides != (a, b) and closed_forms.equal(*sides, tolerance) is False:
    return True
  a, b = sides
  return any(
    _is_no_value(one, other, tolerance)
    or _is_set_of_other_kind(one, other)
    or _is_other_measure(one, other, tolerance)
    or _are_other_words(one, other)
    or _has_own_letter(one, other, tolerance)
    for one, other in ((a, b), (b, a))
  )


def _side_like(text: str, value: str) -> str:
  """The right side of an equation, if the other is a value."""
  left, _, right = text.rpartition("=")
  if left and right and not _NO_EQUATION.search(text) and _is_value(value):
    return right
  return text


def _is_value(text: str) -> bool:
  is_single = _SEVERAL.search(text) is None
  return is_single and closed_forms.equal(text, "0") is not None


def _mentions(text: str, value: str, tolerance: float | None) -> bool:
  """Whether a number in a text has this value.

  Where math-verify cannot read a formula, it takes a number from it.
  """
  return any(
    closed_forms.equal(number.replace(",", ""), value, tolerance) is not False
    for number in extraction.numbers(text)
  )


def _is_no_value(one: str, value: str, tolerance: float | None) -> bool:
  if not _is_value(value):
    return False
  if re.match(_ORDER, one):
    return True
  return bool(_NO_VALUE.search(one)) and not _mentions(one, value, tolerance)


def _is_set_of_other_kind(one: str, other: str) -> bool:
  """Whether one is a matrix, or a union, and the other a list or a value."""
  if "begin" in other or "=" in other or closed_forms.equal(other, "0") is None:
    return False
  is_union = _UNION.search(one) and not _INTERVAL.fullmatch(other)
  return bool(is_union or _MATRIX.fullmatch(one))


def _is_other_measure(one: str, other: str, tolerance: float | None) -> bool:
  measure = _UNIT.fullmatch(one)
  if not measure or _letters(measure["unit"]) & _letters(other):
    return False
  return closed_forms.equal(measure["value"], other, tolerance) is False


def _are_other_words(one: str, other: str) -> bool:
  is_word = "=" not in other and _WORDS.fullmatch(one)
  return bool(is_word) and _letters(one) != _letters(other)


def _has_own_letter(one: str, other: str, tolerance: float | None) -> bool:
  """Whether one depends on a letter that is nowhere in the other."""
  formula, letters = _SUBSCRIPT.sub("", one), _letters(other)
  if _UNSURE.search(formula) or identities.may_have_unit(one):
    return False
  if ("=" in one) != ("=" in other) or not _letters(
    formula
  ) - letters - _CONSTANTS:
    return False
  return bool(letters) or not _mentions(one, other, tolerance)


def _letters(text: str) -> frozenset[str]:
  """The letters of a text, great and small ones alike as math-verify does."""
  found = _LETTER.findall(text)
  return frozenset((greek or latin).lower() for greek, latin in found) - {""}
