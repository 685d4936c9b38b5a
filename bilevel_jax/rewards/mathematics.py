"""Equality of answers as mathematics: texts, closed forms, then math-verify."""

from __future__ import annotations

import functools
import logging
import re
from typing import TYPE_CHECKING, Any

from bilevel_jax.rewards import closed_forms, extraction

if TYPE_CHECKING:
  from bilevel_jax import types


def verify(completion: str, question: types.Question) -> float:
  r"""Returns 1 if the final answer equals the answer as mathematics.

  Final answers (see `extraction.extract`) that are the same text, numbers and
  closed forms are compared here, these by their values. Everything else goes
  to math-verify, which reads the end of the completion: its boxes, else what
  is said to be the answer, else the last formula or number. Its own time
  limits are off, for they need SIGALRM, hence the main thread.

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
  if judged is None or (not judged and _ends_in_boxes(completion)):
    judged = _math_verify(answer, completion)
  return float(judged)


def _equal(final: str, wanted: str, tolerance: float | None) -> bool | None:
  """Whether two answers are equal; None where it takes a parser to know."""
  if len(final) > _LONGEST_FORMULA:
    return None
  if _depth(final) > _DEEPEST:
    return False
  given, target = _plain(final), _plain(wanted)
  if target and _as_text(given) == _as_text(target):
    return True
  given, target = _without_name(given, target), _without_name(target, given)
  if _LIST.search(final) and _LIST.search(wanted) is None and "," not in target:
    return None  # `32, 349` are two numbers
  for one, other in ((given, target), (target, given)):
    if _DECIMAL_COMMA.fullmatch(one) and one.replace(",", ".") == other:
      return True
  a, b = (extraction.as_number(_bare(text)) for text in (given, target))
  if a is not None and b is not None:
    if closed_forms.close(a, b, tolerance):
      return True
    return None if "%" in given + target else False
  # A number in its plainest form: without separators of thousands.
  given = given if a is None else str(a)
  target = target if b is None else str(b)
  judged = closed_forms.equal(given, target, tolerance)
  if judged is None and _differ_in_kind(given, target, tolerance):
    return False
  return judged


def _ends_in_boxes(completion: str) -> bool:
  """Whether the last box may be one part of an answer in several."""
  box = extraction.last_box(completion)
  start = box[0] if box else 0
  return completion.count("\\boxed", max(0, start - _BETWEEN), start) > 1


_BETWEEN = 80  # characters that such boxes are apart, at most


def _differ_in_kind(given: str, target: str, tolerance: float | None) -> bool:
  """Whether one is an equation or a matrix, and no value of the other's kind.

  A value equals an equation only if it equals what is on the right of it.
  """
  for one, other in ((given, target), (target, given)):
    if _SEVERAL.search(other) or closed_forms.equal(other, "0") is None:
      continue
    if _MATRIX.fullmatch(one):
      return True
    left, _, right = one.rpartition("=")
    if left and not _RELATION.search(one):
      return closed_forms.equal(right, other, tolerance) is False
  return False


_SEVERAL = re.compile(r"[,=]|\\\{")
_MATRIX = re.compile(r"\\+begin\{([pb]matrix)\}.*\\+end\{\1\}")
_RELATION = re.compile(
  r"[<>,;:]|or|and|\\(?:leq?|geq?|lt|gt|neq?|in|approx|sim|pm|mp|to|lor|land"
  r"|cup|quad|iff|implies|begin)(?![a-zA-Z])"
)
_NOISE = re.compile(
  r"\s|\$|\\[!,;:$]|\\(?:left|right)(?![a-zA-Z])|\^\\circ|\^\{\\circ\}"
  r"|[.,]$"
)
_COMMAND_END = re.compile(r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])")
_WRAPPED = re.compile(r"\\(?:text|textbf|textnormal|mbox|mathrm)\{([^{}]*)\}")
_FRACTION = re.compile(r"(-?)\\frac\{(\d+)\}\{(\d+)\}")
_NAMED = re.compile(
  r"(\\?[a-zA-Z]+(?:_(?:\w|\{\\?\w+\}))?(?:\(\\?[a-zA-Z,]+\))?)=([^=]+)"
)
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


def _plain(latex: str) -> str:
  unwrapped = _COMMAND_END.sub(r"\1{}", _WRAPPED.sub(r"\1", latex))
  return _NOISE.sub("", unwrapped).replace("dfrac", "frac")


def normalised(answer: str) -> str:
  """Returns an answer without what does not matter: equal texts are equal.

  Args:
    answer: as `extraction.extract` returns it.
  """
  return _as_text(_plain(answer[:_LONGEST_FORMULA]))


def _as_text(plain: str) -> str:
  # Some data double every backslash, and some halve those that end a row.
  return _GROUP.sub(r"\1", _BACKSLASHES.sub(r"\\", plain))


def _bare(plain: str) -> str:
  fraction = _FRACTION.fullmatch(plain)
  if fraction:
    return "{}{}/{}".format(*fraction.groups())
  return plain.removesuffix("%").removesuffix("\\")


def _math_verify(answer: str, completion: str) -> bool:
  import math_verify

  # A warning that the limits are off, and one for each text it cannot read.
  for name in ("math_verify", "latex2sympy2_extended"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  box = extraction.last_box(completion)
  # Some context, for an answer in several boxes or with a unit behind it.
  said = [match.span() for match in extraction.ANSWER_IS.finditer(completion)]
  start, end = box or (said or [(len(completion),) * 2])[-1]
  if end - start > _LONGEST_FORMULA:
    return False
  context = completion[max(0, start - _CONTEXT) : end + 20]
  is_text = any(mark in answer for mark in ("$", "\\[", "\\(", "\\boxed"))
  gold = _parse(answer if is_text else f"${answer}$")
  return math_verify.verify(gold, _parse(context), timeout_seconds=None)


_LONGEST_FORMULA = 2000  # characters; what is longer equals no answer
_DEEPEST = 50  # brackets; what is nested deeper takes the parser minutes
_CONTEXT = 500  # characters before the last box or `answer is`, or of the end


@functools.lru_cache(maxsize=4096)
def _parse(latex: str) -> list[Any]:
  import math_verify

  return math_verify.parse(latex, parsing_timeout=None)  # pyright: ignore[reportArgumentType] -- None is off
