r"""The value of a formula in LaTeX at a point, in microseconds.

A text is read as sums, products, powers, fractions, roots and a few functions
of numbers and letters. Whatever is ambiguous (`1/2x`, `\sin 2x`,
`1\frac{1}{2}`, words) is not read at all.
"""

import cmath
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

Value = Fraction | float | complex

_GREEK = (
  "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu rho sigma"
  " tau phi chi psi xi omega varepsilon vartheta varphi Gamma Delta Theta"
  " Lambda Xi Pi Sigma Phi Psi Omega hbar ell infty"
)
_PARTS = re.compile(
  r"(?P<number>(?:\d+(?:\.\d+|\.(?=/))?|\.\d+)(?:[eE][+-]?\d{1,3}(?![\d.]))?)"
  r"(?:_(?:\d|\{\d+\}))?"  # the base of its digits, which the question names
  rf"|(?P<letter>(?:[a-zA-Z]|\\(?:{_GREEK.replace(' ', '|')})(?![a-zA-Z])"
  r"|\\(?:d?dot|bar|hat|vec|tilde)\{\\?[a-zA-Z]+\})"
  r"(?:_(?:\w|\\[a-zA-Z]+|\{\\?\w+\}))?(?:\^\{\\prime\})?)"
  r"|(?P<nothing>\{\})|(?P<command>\\[a-zA-Z]+(?:(?<=\\log)_(?:\d|\{\d+\}))?)"
  r"|(?P<sign>[-+*/^(){}\[\]!])"
)
_WORD = re.compile(r"(?<![\\a-zA-Z])(?<!_\{)[a-zA-Z]{3}|^[a-zA-Z]{2,}$")
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
  "\\sin": cmath.sin,
  "\\cos": cmath.cos,
  "\\tan": cmath.tan,
  "\\cot": lambda angle: 1 / cmath.tan(angle),
  "\\sec": lambda angle: 1 / cmath.cos(angle),
  "\\csc": lambda angle: 1 / cmath.sin(angle),
  "\\sinh": cmath.sinh,
  "\\cosh": cmath.cosh,
  "\\tanh": cmath.tanh,
  "\\ln": cmath.log,
  "\\lg": cmath.log10,
  "\\exp": cmath.exp,
  "\\arcsin": cmath.asin,
  "\\arccos": cmath.acos,
  "\\arctan": cmath.atan,
}
_TIMES = ("*", "\\cdot", "\\times")
_OVER = ("/", "\\div")
_CLOSING = {
  "(": ")",
  "[": "]",
  "{": "}",
  "\\lfloor": "\\rfloor",
  "\\lceil": "\\rceil",
}
_ENDS = ("", "+", "-", *_CLOSING.values())
_CONSTANTS = {"\\pi": math.pi, "e": math.e, "i": 1j}
_GREATEST_POWER = 8192  # bits of a rational
_GREATEST_FACTORIAL = 500


class Reading(NamedTuple):
  """What a formula is worth, and of what."""

  value: Value
  letters: frozenset[str]


def read(text: str, at: Callable[[str], Fraction | float]) -> Reading:
  """Returns the value of a formula, and its letters.

  Args:
    text: LaTeX without white space and spacing commands.
    at: the value of a letter.

  Raises:
    ValueError: it cannot be read, or in two ways.
    ZeroDivisionError: it has no value.
    OverflowError: its value is too great.
  """
  reader = _Reader(text, at)
  return Reading(reader.whole(), frozenset(reader.letters))


class _Reader:
  """Reads a text from left to right, and evaluates it as it goes."""

  def __init__(self, text: str, at: Callable[[str], Fraction | float]):
    if _WORD.search(text):
      raise ValueError("words are not formulas")
    self._parts: list[tuple[str, str]] = []
    end = 0
    for match in _PARTS.finditer(text):
      if match.start() != end:
        break
      end = match.end()
      kind = str(match.lastgroup)
      if kind != "nothing":
        self._parts.append((kind, match[kind]))
    if end != len(text):
      raise ValueError(f"{text[end]} is not known here")
    self._next, self._at = 0, at
    self.letters: set[str] = set()

  def whole(self) -> Value:
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

  def _sum(self) -> Value:
    negative = self._take("-")
    if not negative:
      self._take("+")
    value = self._product()
    value = -value if negative else value
    while self._peek() in ("+", "-"):
      sign = -1 if self._take("-") else 1
      if sign > 0:
        self._need("+")
      value = value + sign * self._product()
    return value

  def _product(self) -> Value:
    value = self._power()
    divided = False
    while self._peek() not in _ENDS:
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
        before = self._parts[self._next - 1]
        mixed = before[0] == "number" and text.endswith("frac")
        number = kind == "number" and before[1] != ")"
        if divided or mixed or number:
          raise ValueError("may be read in two ways")
        value = value * self._power()
    return value

  def _signed(self) -> Value:
    return -self._power() if self._take("-") else self._power()

  def _power(self) -> Value:
    value = self._atom()
    if self._take("!"):
      value = _factorial(value)
    if not self._take("^"):
      return value
    exponent = self._exponent()
    if self._peek() in ("^", "!"):
      raise ValueError("x^y^z, or x^y!")
    return _raised(value, exponent)

  def _exponent(self) -> Value:
    if self._peek() == "{":
      return self._group()
    exponent = self._atom()
    before = self._parts[self._next - 1]
    if before[0] == "number" and len(before[1]) > 1:
      raise ValueError("x^10 is x^{1}0 to TeX")
    return exponent

  def _group(self) -> Value:
    self._need("{")
    value = self._sum()
    self._need("}")
    return value

  def _atom(self) -> Value:
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
      return self._at(name)
    if text in _CLOSING:
      value = self._sum()
      self._need(_CLOSING[text])
      return _rounded(value, text) if kind == "command" else value
    if text in ("\\frac", "\\tfrac"):
      top = self._argument()
      return top / self._argument()
    if text == "\\binom":
      top = self._argument()
      return _chosen(top, self._argument())
    if text == "\\sqrt":
      root = Fraction(2)
      if self._take("["):
        root = self._sum()
        self._need("]")
      return _real(complex(self._argument()) ** (1 / complex(root)))
    if text in _FUNCTIONS:
      return self._function(_FUNCTIONS[text])
    if text.startswith("\\log_"):
      base = float(text[5:].strip("{}"))
      return self._function(lambda value: cmath.log(value, base))
    raise ValueError(f"{text} is not known here")

  def _function(self, function: Callable[[complex], complex]) -> Value:
    power = Fraction(1)
    if self._take("^"):
      power = self._exponent()
      if not (isinstance(power, Fraction) and power > 0):
        raise ValueError("a power, or the inverse")
    bare = self._peek() not in ("(", "{")
    value = _real(function(complex(self._atom())))
    # \sin 2x is one sine, and \sin x\cos x two.
    if bare and self._peek() not in (*_ENDS, *_FUNCTIONS):
      raise ValueError("where does the argument end?")
    if self._peek() == "^":
      raise ValueError("a power of the argument, or of the function")
    return _raised(value, power)

  def _argument(self) -> Value:
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


def _factorial(value: Value) -> Fraction:
  number = _natural(value)
  if number > _GREATEST_FACTORIAL:
    raise ValueError("too great a factorial")
  return Fraction(math.factorial(number))


def _chosen(count: Value, among: Value) -> Fraction:
  numbers = _natural(count), _natural(among)
  if max(numbers) > _GREATEST_FACTORIAL:
    raise ValueError("too great a binomial coefficient")
  return Fraction(math.comb(*numbers))


def _natural(value: Value) -> int:
  if not isinstance(value, Fraction) or value.denominator != 1 or value < 0:
    raise ValueError("not known to be a whole number, and not negative")
  return int(value)


def _rounded(value: Value, bracket: str) -> Fraction:
  if isinstance(value, complex):
    raise ValueError("what is complex has no order")
  if not isinstance(value, Fraction) and abs(value - round(value)) < 1e-9:
    raise ValueError("a whole number, or nearly one")
  up = bracket == "\\lceil"
  return Fraction(math.ceil(value) if up else math.floor(value))


def _raised(value: Value, exponent: Value) -> Value:
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
