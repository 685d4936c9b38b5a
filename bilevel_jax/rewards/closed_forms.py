"""Closed forms in LaTeX, and lists and matrices of them, in microseconds.

A text that may be read in several ways differs from another if each reading of
the one does from each of the other. What `formulas` cannot read is left to a
parser of more patience.
"""

import itertools
import re

from bilevel_jax.rewards import identities

_MOST_PARTS = 20  # of a set: all pairs are compared
_DECIMALS = re.compile(r"-?\d+,\d[^,]*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_MIXED = re.compile(r"(-?)(\d+)(\\t?frac\{\d+\}\{\d+\}|\\t?frac\d\d)")
_MATRIX = re.compile(r"\\begin\{([pb]matrix)\}(.*)\\end\{\1\}")
_PERCENT = re.compile(r"([^%,]+?)\\?%")
_TWO_SIGNS = re.compile(r"([^,]*)(\\pm|\\mp)(?![a-zA-Z])([^,]*)")


def equal(a: str, b: str, tolerance: float | None = None) -> bool | None:
  """Returns whether two texts have one value; None: one cannot be read.

  Numbers are equal to six decimals and three digits. Lists in parentheses or
  brackets are compared in order, others as sets.

  Args:
    a: LaTeX without white space and spacing commands.
    tolerance: greatest difference of equal numbers.
  """
  judged = _equal(a, b, tolerance)
  if judged:
    return True
  pairs = list(itertools.product(_readings(a), _readings(b)))
  if len(pairs) == 1:
    return judged
  differ = all(_equal(*pair, tolerance) is False for pair in pairs)
  return False if differ else None


def _readings(text: str) -> set[str]:
  """All that a text may say."""
  readings = {text, _THOUSANDS.sub("", text)}
  if _DECIMALS.fullmatch(text):
    readings.add(text.replace(",", "."))
  if "\\log" in text and "\\log_" not in text:
    readings = {text.replace("\\log", name) for name in ("\\ln", "\\lg")}
  if percent := _PERCENT.fullmatch(text):
    readings = {percent[1], f"({percent[1]})/100"}
  if mixed := _MIXED.fullmatch(text):
    sign, whole, fraction = mixed.groups()
    readings = {f"{sign}({whole}+{fraction})", f"{sign}{whole}*{fraction}"}
  return readings


def _equal(a: str, b: str, tolerance: float | None) -> bool | None:
  ends, a_parts = _list(a)
  b_ends, b_parts = _list(b)
  if len(a_parts) == len(b_parts) == 1 and not ends + b_ends:
    return identities.equal(a_parts[0], b_parts[0], tolerance)
  alike = ends == b_ends and len(a_parts) == len(b_parts)
  if ends and alike:
    pairs = zip(a_parts, b_parts, strict=True)
    return _all([_equal(*pair, tolerance) for pair in pairs])
  if max(len(a_parts), len(b_parts)) > _MOST_PARTS:
    return None
  table = [[_equal(x, y, tolerance) for y in b_parts] for x in a_parts]
  columns = list(zip(*table, strict=True))
  # Whatever the brackets mean: what is in one of them alone distinguishes them.
  if any(set(line) == {False} for line in [*table, *columns]):
    return False
  known = all(cell is not None for row in table for cell in row)
  return True if alike and known else None


def _all(answers: list[bool | None]) -> bool | None:
  if False in answers:
    return False
  return None if None in answers else True


def _list(text: str) -> tuple[str, list[str]]:
  """What is around a list in order, and its parts."""
  if matrix := _MATRIX.fullmatch(text):
    rows = [row.split("&") for row in matrix[2].split("\\\\") if row]
    return f"{len(rows)} rows", [entry for row in rows for entry in row]
  if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
    inside = _split(text[1:-1])
    if len(inside) > 1:
      return text[0] + text[-1], inside
  in_braces = text.startswith("\\{") and text.endswith("\\}")
  parts = _split(text[2:-2]) if in_braces else _split(text)
  return "", [value for part in parts for value in _signed(part)] or [text]


def _signed(text: str) -> list[str]:
  """Both values of what has two signs."""
  found = _TWO_SIGNS.fullmatch(text)
  if not found:
    return [text]
  return [f"{found[1]}{sign}{found[3]}" for sign in "+-"]


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
