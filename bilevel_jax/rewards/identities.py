"""Formulas and equations compared by their values at random points.

Two formulas are equal if they have the same value there (Schwartz 1980):
exactly, where they are rational, else to nine digits. Two equations are equal
if the differences of their sides have a constant ratio; they are not if a
point solves one of them alone.
"""

import functools
import random
import re
from collections.abc import Callable
from fractions import Fraction

from bilevel_jax.rewards import formulas

_LONGEST = 300  # characters; also keeps the recursion shallow
_REAL_POINTS = (0, 1)
# What is defined for whole numbers, or may agree at a point by chance.
_OF_WHOLE_NUMBERS = re.compile(r"!|\\(?:binom|lfloor|lceil)")
_WHOLE_POINTS = (2, 3, 4, 5)
_UNITS = -1  # the point where every letter is 1: a unit that is left out
# A number that may have a unit behind it: no letter of a formula, that.
_MEASURE = re.compile(r"-?(?:\d|\.|\\frac\{?\d|\\sqrt\{?\d)[^+(]*$")
_NAME = re.compile(r"\\?[a-zA-Z]+(?:_(?:\w|\{\\?\w+\}))?(?:\([a-zA-Z,]+\))?")
_DIFFERENTIAL = re.compile(r"(?<![\\a-zA-Z])d[a-zA-Z\\{]|\\sim|\\approx")
_SECANTS = 30
_MOST_LETTERS = 3  # that an equation is solved for


def equal(a: str, b: str, tolerance: float | None) -> bool | None:
  """Returns whether formulas or equations are equal; None: not known.

  Args:
    a: LaTeX without white space and spacing commands.
    tolerance: greatest difference of equal numbers.
  """
  if not a or not b or max(len(a), len(b)) > _LONGEST:
    return None
  try:
    if "=" in a and "=" in b:
      return _equal_equations(a, b, tolerance)
    return _equal_formulas(a, b, tolerance)
  except (ValueError, ZeroDivisionError):
    return None
  except OverflowError:  # no answer that anyone asks for is as great
    return None if "=" in a or _OF_WHOLE_NUMBERS.search(a + b) else False


def close(
  value: formulas.Value, target: formulas.Value, tolerance: float | None
) -> bool:
  """Returns whether numbers are equal to six decimals and three digits.

  Args:
    tolerance: greatest difference; instead of the rule above.
  """
  if value == target:
    return True
  difference = abs(value - target)
  if tolerance is not None:
    return difference <= tolerance * (1 + 1e-9)
  if isinstance(value, complex) or isinstance(target, complex):
    return difference <= 1e-9 * abs(target)
  if not (isinstance(value, Fraction) and isinstance(target, Fraction)):
    value, target = float(value), float(target)
    if difference <= 1e-9 * abs(target):
      return True
  return round(value, 6) == round(target, 6) and difference <= 1e-3 * abs(
    target
  )


def may_have_unit(text: str) -> bool:
  """Returns whether the letters of a text may be a unit behind a number.

  Args:
    text: LaTeX without white space and spacing commands.
  """
  return bool(_MEASURE.match(text))


def _equal_formulas(a: str, b: str, tolerance: float | None) -> bool | None:
  whole = _OF_WHOLE_NUMBERS.search(a + b)
  for point in _WHOLE_POINTS if whole else _REAL_POINTS:
    one, other = _read(a, point), _read(b, point)
    if one.letters != other.letters:
      odd = [a] * bool(one.letters - other.letters)
      odd += [b] * bool(other.letters - one.letters)
      if not any(map(may_have_unit, odd)):
        return False
      bare = _read(a, _UNITS).value, _read(b, _UNITS).value
      return None if close(*bare, tolerance) else False
    if not one.letters:
      rational = all(isinstance(v.value, Fraction) for v in (one, other))
      if rational and tolerance is None and "." not in a + b:
        return one.value == other.value  # rounding is for decimals
      return close(one.value, other.value, tolerance)
    if not _same(one.value, other.value):
      return False
  return None if whole else True


def _equal_equations(a: str, b: str, tolerance: float | None) -> bool | None:
  (left, right), (other_left, other_right) = a.split("="), b.split("=")
  if left == other_left and _NAME.fullmatch(left):
    return _equal_formulas(right, other_right, tolerance)
  if _DIFFERENTIAL.search(a + b) or _OF_WHOLE_NUMBERS.search(a + b):
    return None
  differences = f"{left}-({right})", f"{other_left}-({other_right})"
  readings = [[_read(text, i) for i in _REAL_POINTS] for text in differences]
  letters = readings[0][0].letters
  if letters != readings[1][0].letters:
    return False
  (a0, a1), (b0, b1) = [[one.value for one in pair] for pair in readings]
  if _same(a0 * b1, a1 * b0):
    return True if a0 and b0 and len(letters) > 0 else None
  for solved, other in (differences, reversed(differences)):
    for letter in sorted(letters)[:_MOST_LETTERS]:
      if _solves_one_alone(solved, other, letter):
        return False
  return None


def _solves_one_alone(solved: str, other: str, letter: str) -> bool:
  """Whether a real point that solves an equation does not solve another one.

  All letters but one are at random points; the secant method finds that one.
  """

  def value(text: str, at: float) -> float:
    found = formulas.read(
      text, lambda name: at if name == letter else _at(name, 0)
    ).value
    if isinstance(found, complex):
      raise ValueError("not real")
    return float(found)

  root = _root(functools.partial(value, solved))
  if root is None:
    return False
  scale = max(abs(value(other, root + step)) for step in (-1, 1))
  return abs(value(other, root)) > 1e-6 * scale


def _root(function: Callable[[float], float]) -> float | None:
  before, now = 0.9, 1.3
  at_before = function(before)
  for _ in range(_SECANTS):
    at_now = function(now)
    if at_now == at_before:
      return None
    step = at_now * (now - before) / (at_now - at_before)
    before, at_before, now = now, at_now, now - step
    if abs(step) <= 1e-12 * abs(now):
      return now
  return None


def _same(value: formulas.Value, other: formulas.Value) -> bool:
  scale = max(abs(value), abs(other))
  return value == other or abs(value - other) <= 1e-9 * scale


def _read(text: str, point: int) -> formulas.Reading:
  return formulas.read(text, functools.partial(_at, point=point))


@functools.lru_cache(maxsize=4096)
def _at(letter: str, point: int) -> Fraction:
  if point == _UNITS:
    return Fraction(1)
  draw = random.Random(f"{letter} {point}")
  if point in _WHOLE_POINTS:
    return Fraction(draw.randint(2, 20))
  return Fraction(draw.randint(500, 2000), 1000)
