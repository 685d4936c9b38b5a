"""Equality of answers as mathematics: texts, closed forms, then math-verify."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bilevel_jax.rewards import (
  closed_forms,
  extraction,
  identities,
  kinds,
  symbolic,
)

if TYPE_CHECKING:
  from bilevel_jax import types


def verify(completion: str, question: types.Question) -> float:
  r"""Returns 1 if the final answer equals the answer as mathematics.

  Final answers (see `extraction.extract`) that are the same text, numbers and
  closed forms are compared here, these by their values. Everything else goes
  to math-verify: the final answer, where there is a box, all boxes at the end
  where the answer has several parts, else the end of the completion, of which
  it reads what is said to be the answer, or the last formula or number. Its
  own time limits are off, for they need SIGALRM, hence the main thread.

  Numbers are equal to six decimals and three digits. A question may bring its
  own tolerance, as OlympiadBench's do: `meta["error"]`, the greatest
  difference. docs/grading.md says where this differs from other graders.
  """
  final = extraction.extract(completion)
  answer = question.answer
  box = extraction.last_box(answer)
  wanted = answer[slice(*box)] if box else answer
  error = question.meta.get("error")
  tolerance = None if error is None else float(error)
  judged = _equal(final, wanted, tolerance)
  in_boxes = _ends_in_boxes(answer) or (
    _PARTS.search(answer) is not None and _ends_in_boxes(completion)
  )
  if judged is None or (not judged and in_boxes):
    # A box that says nothing must not let an earlier number be the answer.
    alone = not in_boxes and extraction.last_box(completion) is not None
    judged = symbolic.equivalent(
      answer,
      rf"\boxed{{{final.replace('~', ' ')}}}" if alone else completion,
    )
  return float(judged)


def _equal(final: str, wanted: str, tolerance: float | None) -> bool | None:
  """Whether two answers are equal; None where it takes a parser to know."""
  if len(final) > symbolic.LONGEST:
    return None
  if _depth(final) > _DEEPEST:
    return False
  target = _plain(wanted)
  if extraction.as_number(_bare(target)) is not None:
    final = _LABEL.sub("", _UNIT_WORDS.sub("", final))
  given = _plain(final)
  if target and _as_text(given) == _as_text(target):
    return True
  given, target = _without_name(given, target), _without_name(target, given)
  # `32, 349` are two numbers.
  may_be_list = any(
    _LIST.search(text) is not None and "," not in other
    for text, other in ((final, target), (wanted, given))
  )
  if not may_be_list:
    judged = _equal_numbers(given, target, tolerance)
    if judged is not None:
      return judged
    given, target = _without_separators(given), _without_separators(target)
  judged = closed_forms.equal(given, target, tolerance)
  if judged is None and kinds.differ(given, target, tolerance):
    return False
  return None if may_be_list and judged else judged


def _equal_numbers(
  given: str, target: str, tolerance: float | None
) -> bool | None:
  for one, other in ((given, target), (target, given)):
    if _DECIMAL_COMMA.fullmatch(one) and one.replace(",", ".") == other:
      return True
  a, b = (extraction.as_number(_bare(text)) for text in (given, target))
  if a is None or b is None:
    return None
  exact = tolerance is None and "." not in given + target
  if a == b if exact else identities.close(a, b, tolerance):
    return True
  return None if "%" in given + target else False


def _without_separators(text: str) -> str:
  """A number in its plainest form: without separators of thousands."""
  is_number = "%" not in text and extraction.as_number(text) is not None
  return text.replace(",", "") if is_number else text


def _ends_in_boxes(completion: str) -> bool:
  """Whether the last box may be one part of an answer in several."""
  box = extraction.last_box(completion)
  start = box[0] if box else 0
  return completion.count("\\boxed", max(0, start - _BETWEEN), start) > 1


_BETWEEN = 80  # characters that such boxes are apart, at most
_PARTS = re.compile(r"[,;]|\\pm|\\mp|\b(?:and|or)\b")


_NOISE = re.compile(
  r"\s|~|(?<!\\)\\\s|\\q?quad(?![a-zA-Z])|\$|\\[!,;:$]"
  r"|\\(?:left|right)(?![a-zA-Z])|\^\\circ|\^\{\\circ\}|[.,]$"
)
_SIGNS = str.maketrans(
  {"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{DEGREE SIGN}": ""}
)
# White space between digits: separators of thousands, a mixed number, TeX's
# \frac 1 2; else there are two numbers.
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:\s\d{3})+(?![\d\s]*\d)")
_MIXED = re.compile(r"(?<![\d.])(\d+)(?:\s|~|\\\s)+(\d+/\d+)")
_TWO_ARGUMENTS = re.compile(r"(frac\s*\d)\s+(?=\d)")
_APART = re.compile(r"(?<=\d)(?:\s|\\\s|\\q?quad(?![a-zA-Z]))+(?=\d)")
_REPEATING = re.compile(r"(?<!\d)(\d*)\.(\d*)\\overline\s*\{(\d{1,50})\}")
# `25 dollars` is 25 where that is what is asked for; 3 thirds are not 3.
_UNIT_WORDS = re.compile(
  r"(?<=[\d}])\s+(?!hundred|thousand|[mbtr]+illion|dozen|hal[fv]|third|fourth"
  r"|quarter|fifth|sixth|eighth|tenth|squared|cubed)[a-z]{3,}(?:\s+[a-z]{2,})*"
  r"\.?\s*$"
)
# Of an answer among several: `\textbf{(C)}\ 5`.
_LABEL = re.compile(
  r"^\s*\\text(?:bf|rm)?\s*\{\s*\([A-E]\)[\s~]*\}(?:\\?\s|[~:])*(?=\S)"
)
# Commands, and letters on their own: `a b c` is a product, and no word.
_COMMAND_END = re.compile(
  r"(\\[a-zA-Z]+|(?<![\\a-zA-Z])[a-zA-Z](?=\s+[a-zA-Z](?![a-zA-Z])))"
  r"\s+(?=[a-zA-Z])"
)
_WRAPPED = re.compile(
  r"\\(?:text|textbf|textnormal|mbox|mathrm)\s*\{([^{}]*)\}"
)
_FRACTION = re.compile(r"(-?)\\frac\{(\d+)\}\{(\d+)\}")
_NAMED = re.compile(
  r"(\\?[a-zA-Z]+?(?:_(?:\w|\{\\?\w+\}))?(?:\(\\?[a-zA-Z,]+\))?)"
  r"(?:=|\\in(?![a-zA-Z]))([^=]+)"
)
_DEEPEST = 50  # brackets; what is nested deeper takes the parser minutes
_LIST = re.compile(r"\d,\s+\d")
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")
_BACKSLASHES = re.compile(r"\\+")
_GROUP = re.compile(r"(?<![\w}\]])\{([^{}]*)\}")


def _depth(text: str) -> int:
  """How deep brackets are nested, open ones that nothing closes included."""
  depth = deepest = 0
  for sign in text:
    depth += (sign in "([{") - (sign in ")]}")
    deepest = max(deepest, depth)
  return deepest


def _without_name(text: str, other: str) -> str:
  """`x=5` as `5`, where the other one has no other name."""
  named, others = _NAMED.fullmatch(text), _NAMED.fullmatch(other)
  alike = not others or (named and others[1] == named[1])
  return named[2] if named and alike and (others or "=" not in other) else text


def _repeating(found: re.Match[str]) -> str:
  """`0.1\\overline{6}` as a fraction."""
  start, digits = found[1] + found[2], found[3]
  top = int(start + digits) - int(start or "0")
  bottom = "9" * len(digits) + "0" * len(found[2])
  return rf"\frac{{{top}}}{{{bottom}}}"


def _plain(latex: str) -> str:
  latex = _THOUSANDS.sub(lambda found: "".join(found[0].split()), latex)
  latex = _TWO_ARGUMENTS.sub(r"\1", _MIXED.sub(r"(\1+\2)", latex))
  latex = _REPEATING.sub(_repeating, _APART.sub(",", latex.translate(_SIGNS)))
  unwrapped = _COMMAND_END.sub(r"\1{}", _WRAPPED.sub(r"\1", latex))
  plain = _NOISE.sub("", unwrapped).replace("dfrac", "frac")
  return plain.replace("{,}", ",")


def normalised(answer: str) -> str:
  """Returns an answer without what does not matter: equal texts are equal."""
  return _as_text(_plain(answer[: symbolic.LONGEST]))


def _as_text(plain: str) -> str:
  # Some data double every backslash, and some halve those that end a row.
  text = _BACKSLASHES.sub(r"\\", plain.replace("{}", ""))
  return _GROUP.sub(r"\1", text)


def _bare(plain: str) -> str:
  fraction = _FRACTION.fullmatch(plain)
  if fraction:
    return "{}{}/{}".format(*fraction.groups())
  return plain.removesuffix("%").removesuffix("\\")
