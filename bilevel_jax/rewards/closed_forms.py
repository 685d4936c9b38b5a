r"""Closed forms in LaTeX, compared by their values, in microseconds.

A text is read as sums, products, powers, fractions, roots and a few functions
of numbers and letters. Two of them are equal if they have the same value at
random points (Schwartz 1980): exactly, where they are rational, else to nine
digits. Whatever is ambiguous (`1/2x`, `\sin 2x`, `1\frac{1}{2}`, words) is not
read at all, and left to a parser of more patience.
"""

import cmath
import functools
import math
import random
import re
from collections.abc import Callable
from fractions import Fraction

_Value = Fraction | float | complex

_LONGEST = 300  # characters; also keeps the recursion shallow
_POINTS = 2
_UNITS = -1  # the point where every letter is 1: a unit that is left out
_MOST_PARTS = 20  # of a set: all pairs are compared
_GREATEST_POWER = 8192  # bits of a rational
_GREATEST_FACTORIAL = 500
_PARTS = re.compile(
  r"(?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,3}(?![\d.]))?)"
  r"|(?P<letter>(?:[a-zA-Z]|\\(?:alpha|beta|gamma|delta|epsilon|zeta"
  r"|eta|theta|kappa|lambda|mu|nu|rho|sigma|tau|phi|psi|xi|omega|Delta|Omega|hbar|infty)(?![a-zA-Z]))"
  r"(?:_(?:\w|\\[a-zA-Z]+|\{\\?\w+\}))?)"
  r"|(?P<nothing>\{\})|(?P<command>\\[a-zA-Z]+)|(?P<sign>[-+*/^(){}\[\]!])"
)
# A number that may have a unit behind it: no letter of a formula, that.
_MEASURE = re.compile(r"-?(?:\d|\.|\\frac\{?\d|\\sqrt\{?\d)[^+(]*$")
_DECIMALS = re.compile(r"-?\d+,\d[^,]*")
_THOUSANDS = re.compile(r"\d,\d{3}(?!\d)")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3}|^[a-zA-Z]{2,}$")
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
  "\\sin": cmath.sin,
  "\\cos": cmath.cos,
  "\\tan": cmath.tan,
  "\\ln": cmath.log,
  "\\exp": cmath.exp,
  "\\arcsin": cmath.asin,
  "\\arccos": cmath.acos,
  "\\arctan": cmath.atan,
}
_TIMES = ("*", "\\cdot", "\\times")
_OVER = ("/", "\\div")
_CONSTANTS = {"\\pi": math.pi, "e": math.e, "i": 1j}


def equal(a: str, b: str, tolerance: float | None = None) -> bool | None:
  """Returns whether two texts have one value; None: one cannot be read.

  Numbers are equal to six decimals and three digits. Lists in parentheses or
  brackets are compared in order, others as sets.

  Args:
    a: LaTeX without white space and spacing commands.
    b: the same.
    tolerance: greatest difference of equal numbers.
  """
  ends, a_parts = _list(a)
  b_ends, b_parts = _list(b)
  if len(a_parts) == len(b_parts) == 1 and not ends + b_ends:
    return _equal(a, b, tolerance)
  alike = ends == b_ends and len(a_parts) == len(b_parts)
  if ends and alike:
    pairs = zip(a_parts, b_parts, strict=True)
    return _all([equal(*pair, tolerance) for pair in pairs])
  if max(len(a_parts), len(b_parts)) > _MOST_PARTS:
    return None
  if not alike and any(map(_may_be_one_number, (a, b))):
    return None
  table = [[equal(x, y, tolerance) for y in b_parts] for x in a_parts]
  columns = list(zip(*table, strict=True))
  # Whatever the brackets mean: what is in one of them alone tells them apart.
  if any(set(line) == {False} for line in [*table, *columns]):
    return False
  known = all(cell is not None for row in table for cell in row)
  return True if alike and known else None


def close(value: _Value, target: _Value, tolerance: float | None) -> bool:
  """Returns whether numbers are equal to six decimals and three digits.

  Args:
    value: a number.
    target: what it should be.
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


def _all(answers: list[bool | None]) -> bool | None:
  if False in answers:
    return False
  return None if None in answers else True


def _list(text: str) -> tuple[str, list[str]]:
  """The brackets around a list in order, and what is between its commas."""
  if text.startswith("\\{") and text.endswith("\\}"):
    return "", _split(text[2:-2]) or [text]
  if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
    inside = _split(text[1:-1])
    if len(inside) > 1:
      return text[0] + text[-1], inside
  return "", _split(text) or [text]


def _split(text: str) -> list[str]:
  """What is between the commas outside of brackets; [] if these are odd."""
  parts, depth, start = [], 0, 0
  for position, sign in enumerate(text):
    depth += (sign in "([{") - (sign in ")]}")
    if depth < 0:
      return []
    if sign == "," and depth == 0:
      parts.append(text[start:position])
      start = position + 1
  return [] if depth else [*parts, text[start:]]


def _may_be_one_number(text: str) -> bool:
  """Whether a comma may separate decimals, or thousands."""
  return bool(_DECIMALS.fullmatch(text) or _THOUSANDS.search(text))


def _equal(a: str, b: str, tolerance: float | None) -> bool | None:
  if not a or not b or max(len(a), len(b)) > _LONGEST:
    return None
  try:
    for point in range(_POINTS):
      reader, other = _Reader(a, point), _Reader(b, point)
      value, target = reader.value(), other.value()
      if reader.letters != other.letters:
        odd = [a] * bool(reader.letters - other.letters)
        odd += [b] * bool(other.letters - reader.letters)
        if not any(map(_MEASURE.match, odd)):
          return False
        bare = _Reader(a, _UNITS).value(), _Reader(b, _UNITS).value()
        return None if close(*bare, tolerance) else False
      if not reader.letters:
        return close(value, target, tolerance)
      scale = max(abs(value), abs(target))
      if not (value == target or abs(value - target) <= 1e-9 * scale):
        return False
  except OverflowError:  # no answer that anyone asks for is as great
    return False
  except (ValueError, ZeroDivisionError):
    return None
  return True


@functools.lru_cache(maxsize=1024)
def _at(letter: str, point: int) -> Fraction:
  if point == _UNITS:
    return Fraction(1)
  return Fraction(random.Random(f"{letter} {point}").randint(500, 2000), 1000)


class _Reader:
  """Reads a text from left to right, and evaluates it as it goes."""

  def __init__(self, text: str, point: int):
    if _WORD.search(text):
      raise ValueError("words are not formulas")
    self._parts: list[tuple[str, str]] = []
    end = 0
    for match in _PARTS.finditer(text):
      if match.start() != end:
        break
      end = match.end()
      if match.lastgroup != "nothing":
        self._parts.append((str(match.lastgroup), match[0]))
    if end != len(text):
      raise ValueError(f"{text[end]} is not known here")
    self._next, self._point = 0, point
    self.letters: set[str] = set()

  def value(self) -> _Value:
    value = self._sum()
    if self._next < len(self._parts):
      raise ValueError("more than a formula")
    return value

  def _peek(self) -> str:
    at_end = self._next >= len(self._parts)
    return "" if at_end else self._parts[self._next][1]

  def _take(self, *wanted: str) -> bool:
    found = bool(self._peek()) and self._peek() in wanted
    self._next += found
    return found

  def _need(self, sign: str) -> None:
    if not self._take(sign):
      raise ValueError(f"{sign} is missing")

  def _sum(self) -> _Value:
    negative = self._take("-")
    if not negative:
      self._take("+")
    value = self._product()
    value = -value if negative else value
    while self._peek() in ("+", "-") and self._peek():
      sign = -1 if self._take("-") else 1
      if sign > 0:
        self._need("+")
      value = value + sign * self._product()
    return value

  def _product(self) -> _Value:
    value = self._power()
    divided = False
    while self._peek() not in ("", "+", "-", ")", "}", "]"):
      if self._take(*_TIMES):
        divided = False
        value = value * self._signed()
      elif self._take(*_OVER):
        if divided:
          raise ValueError("a / b / c")
        divided = True
        value = value / self._signed()
      else:
        kind, text = self._parts[self._next]
        number_before = self._parts[self._next - 1][0] == "number"
        mixed = number_before and text.endswith("frac")
        if divided or mixed or kind == "number":
          raise ValueError("may be read in two ways")
        value = value * self._power()
    return value

  def _signed(self) -> _Value:
    return -self._power() if self._take("-") else self._power()

  def _power(self) -> _Value:
    value = self._atom()
    if self._take("!"):
      value = _factorial(value)
    if not self._take("^"):
      return value
    if self._peek() == "{":
      exponent = self._group()
    else:
      exponent = self._atom()
      before = self._parts[self._next - 1]
      if before[0] == "number" and len(before[1]) > 1:
        raise ValueError("x^10 is x^{1}0 to TeX")
    if self._peek() in ("^", "!"):
      raise ValueError("x^y^z, or x^y!")
    return _raised(value, exponent)

  def _group(self) -> _Value:
    self._need("{")
    value = self._sum()
    self._need("}")
    return value

  def _atom(self) -> _Value:
    if not self._peek():
      raise ValueError("something is missing")
    kind, text = self._parts[self._next]
    self._next += 1
    if kind == "number":
      return Fraction(text)
    if text in _CONSTANTS:
      return _CONSTANTS[text]
    if kind == "letter":
      if text in "fgh" and self._peek() == "(":
        raise ValueError("a function nobody defined")
      name = text.replace("{", "").replace("}", "")
      self.letters.add(name)
      return _at(name, self._point)
    if text in ("(", "{"):
      value = self._sum()
      self._need(")" if text == "(" else "}")
      return value
    if text in ("\\frac", "\\tfrac"):
      top = self._argument()
      return top / self._argument()
    if text == "\\sqrt":
      root = Fraction(2)
      if self._take("["):
        root = self._sum()
        self._need("]")
      return _real(complex(self._argument()) ** (1 / complex(root)))
    if text in _FUNCTIONS and self._peek() in ("(", "{"):
      value = _real(_FUNCTIONS[text](complex(self._atom())))
      if self._peek() == "^":
        raise ValueError("a power of the argument, or of the function")
      return value
    raise ValueError(f"{text} is not known here")

  def _argument(self) -> _Value:
    """What \\frac and \\sqrt take: a group, a digit of a number, a letter."""
    if self._peek() == "{":
      return self._group()
    if self._peek() and self._parts[self._next][0] == "number":
      text = self._peek()
      if not text.isdigit():
        raise ValueError("half of a number")
      self._parts[self._next : self._next + 1] = [
        ("number", digit) for digit in text
      ]
    return self._atom()


def _factorial(value: _Value) -> Fraction:
  if not isinstance(value, Fraction) or value.denominator != 1:
    raise ValueError("a factorial of what is not known to be whole")
  if not 0 <= value <= _GREATEST_FACTORIAL:
    raise ValueError("too great a factorial, or one of a negative number")
  return Fraction(math.factorial(int(value)))


def _raised(value: _Value, exponent: _Value) -> _Value:
  if (
    isinstance(value, Fraction)
    and isinstance(exponent, Fraction)
    and exponent.denominator == 1
  ):
    bits = max(value.numerator.bit_length(), value.denominator.bit_length())
    if bits * abs(exponent) > _GREATEST_POWER:
      raise OverflowError("too great a power")
    return value ** int(exponent)
  return _real(complex(value) ** complex(exponent))


def _real(value: complex) -> complex | float:
  if not cmath.isfinite(value):
    raise OverflowError("not finite")
  return value.real if abs(value.imag) <= 1e-12 * abs(value) else value
