"""Verifiers: functions (completion, question) -> value in [0, 1].

Nothing here needs JAX, so a scoring process that imports this module starts
quickly; and nothing here sets a time limit: a verifier may hang, which is
why those that can are run in processes that can be killed (`rewards.pool`).
"""

from __future__ import annotations

import ast
import fractions
import functools
import inspect
import math
import re
import reprlib
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from bilevel_jax import errors, own_code
from bilevel_jax.rewards import extraction, mathematics, signatures
from bilevel_jax.rewards.sandbox import forms, grading
from bilevel_jax.rewards.sandbox.settings import Sandbox

if TYPE_CHECKING:
  from bilevel_jax import types

LARGEST = 1e30  # float32 holds the sum of many such rewards
_LONGEST = 4000  # characters of a traceback

Verifier = Callable[[str, "types.Question"], float]


class Part(NamedTuple):
  """One term of a reward."""

  name: str
  weight: float
  verify: Verifier


class Choice(NamedTuple):
  """A field of the questions that chooses the verifier of each."""

  field: str
  names: Mapping[str, str]
  """Value of the field -> verifier; any other value is a verifier's name."""

  def of(self, question: types.Question) -> str:
    """Returns the verifier of a question.

    Raises:
      KeyError: it lacks the field.
    """
    value = str(question.meta[self.field])
    return self.names.get(value, value)


def choice(field: str | None, names: Mapping[str, str]) -> Choice | None:
  """Returns what a field chooses; None where there is none."""
  return None if field is None else Choice(field, names)


def build(
  parts: Mapping[str, float],
  pattern: str | None = None,
  sandbox: Sandbox = Sandbox(),
) -> list[Part]:
  """Returns the terms of a reward.

  Args:
    parts: verifier -> weight. A verifier is a name of `NAMES` or a dotted
      path `package.module.function` (or `package.module:function`).
    sandbox: for the programs of `code`.

  Raises:
    ConfigError: an unknown name, a function that cannot be imported, a missing
      or broken pattern, or a weight that is no number below 1e30 in size.
  """
  if not parts:
    raise errors.ConfigError("reward.verifiers must name at least one verifier")
  for weight in parts.values():
    if not _is_number(weight):
      raise errors.ConfigError(
        f"reward.weights must be numbers below 1e30 in size, got {weight!r}"
      )
  return [
    Part(name, float(weight), _find(name, pattern, sandbox))
    for name, weight in parts.items()
  ]


def check(
  names: Iterable[str],
  by: Choice | None,
  questions: Iterable[types.Question],
) -> None:
  """Returns if every question has a verifier, and the tests that `code` asks.

  Args:
    names: of the verifiers of a reward.

  Raises:
    ConfigError: naming the first question that has not.
  """
  known = [*names]
  for question in questions:
    chosen = known
    if by is not None:
      if by.field not in question.meta:
        raise errors.ConfigError(
          f"reward.verifiers_by: question {question.id} lacks the field "
          f"{by.field!r}"
        )
      chosen = [by.of(question)]
      if chosen[0] not in known:
        raise errors.ConfigError(
          f"reward.verifiers_by: the field {by.field!r} of question "
          f"{question.id} must name one of {', '.join(known)}, got "
          f"{chosen[0]!r} (reward.verifier_names maps values to them)"
        )
      if chosen[0] in READ_ANSWERS and not question.answer:
        raise errors.ConfigError(
          f"question {question.id} must have an answer, which {chosen[0]} reads"
        )
    if "code" in chosen:
      try:
        forms.tests_of(question)
      except Exception as error:  # of data of any kind
        raise errors.ConfigError(
          "the verifier code needs tests that it can read: question "
          f"{question.id}: {type(error).__name__}: {error}"
        ) from error


def _is_number(value: Any) -> bool:
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return number and abs(value) < LARGEST


def score(
  parts: list[Part],
  completion: str,
  question: types.Question,
  by: Choice | None = None,
) -> tuple[float, bool] | str:
  """Returns (weighted sum, whether the first part is at its top), or why not.

  Args:
    by: chooses one of the parts; None: all count.
  """
  values = evaluate(parts, completion, question, by)
  return values if isinstance(values, str) else total(parts, values)


def total(
  parts: Sequence[Part], values: Sequence[float | None]
) -> tuple[float, bool]:
  """Returns the weighted sum, and whether the first value is at its top.

  Args:
    values: of each part; None where it has none, but not of all.
  """
  found = [value for value in values if value is not None]
  weighted = sum(
    part.weight * value
    for part, value in zip(parts, values, strict=True)
    if value is not None
  )
  return weighted, found[0] >= 1


def evaluate(
  parts: Sequence[Part],
  completion: str,
  question: types.Question,
  by: Choice | None = None,
) -> list[float | None] | str:
  """Returns the value of each part, None where it is not for the question.

  A verifier that raises, or returns something that is not a number which
  float32 holds, leaves the completion without a score; the text says which.

  Args:
    by: chooses one of the parts; None: all count.
  """
  chosen = None if by is None else by.of(question)
  values: list[float | None] = []
  for part in parts:
    if chosen is not None and part.name != chosen:
      values.append(None)
      continue
    try:
      value: Any = part.verify(completion, question)
    except KeyboardInterrupt:
      raise
    except BaseException as error:  # whatever it is, there is no score
      return f"{part.name} raised\n{_own_traceback(error)}"
    if inspect.iscoroutine(value):
      value.close()
      return f"{part.name} must be a plain function, got an async one"
    if value is signatures.NOT_FOR_THIS_ROW:
      values.append(None)
      continue
    values.append(_number(value))
    if not abs(total(parts[: len(values)], values)[0]) < LARGEST:
      got = _shown(value)
      weighted = f" of weight {part.weight:g}" if part.weight != 1 else ""
      return (
        f"{part.name} must return a finite number below 1e30 in size, got {got}"
        + weighted
      )
  if all(value is None for value in values):
    return "no verifier is for this question: each returned None"
  return values


def _number(value: Any) -> float:
  """Returns a value as a number; NaN where it is none, such as text."""
  try:
    is_text = isinstance(value, (str, bytes, bytearray))
    return math.nan if is_text else float(value)
  except KeyboardInterrupt:
    raise
  except BaseException:  # a list, None, an array of several, ...
    return math.nan


def _shown(value: Any) -> str:
  try:
    return reprlib.repr(value)
  except Exception:  # such as that of an integer of 5000 digits
    return type(value).__name__


def _own_traceback(error: BaseException) -> str:
  """Returns the traceback of an exception from the verifier's frame on."""
  below = error.__traceback__ and error.__traceback__.tb_next
  lines = traceback.format_exception(type(error), error, below)
  text = "".join(lines).rstrip()
  if len(text) <= _LONGEST:
    return text
  half = _LONGEST // 2
  return f"{text[:half]}\n... {len(text)} characters ...\n{text[-half:]}"


def exact(completion: str, question: types.Question) -> float:
  """Returns 1 if the final answer is the answer, up to white space."""
  return float(
    extraction.extract(completion).split() == question.answer.split()
  )


def number(completion: str, question: types.Question) -> float:
  """Returns 1 if the last number in the completion equals the answer."""
  answer = extraction.last_number(question.answer)
  return float(
    answer is not None and extraction.last_number(completion) == answer
  )


def choice_letter(completion: str, question: types.Question) -> float:
  """Returns 1 if the final answer begins with the letter of the right choice.

  It may stand in parentheses or in `\\text{}`, and have its choice behind it.
  """
  found = _LETTER.match(extraction.extract(completion))
  return float(found is not None and found[1] == question.answer.strip())


def expression(completion: str, question: types.Question) -> float:
  """Returns 1 if an arithmetic expression solves a countdown question.

  The last line of the final answer, up to an `=`, must be made of the numbers
  in `question.meta["nums"]`, each at most once, of + - * / and parentheses,
  and be worth `question.meta["target"]`.
  """
  lines = extraction.extract(completion).splitlines() or [""]
  text = lines[-1].partition("=")[0].strip().strip("$").strip()
  for sign, latex in _SIGNS.items():
    text = re.sub(latex, sign, text)
  if len(text) > 40 * len(question.meta["nums"]):
    return 0.0  # also keeps the parser from deep nesting
  used: list[int] = []
  try:
    value = _evaluate(ast.parse(text, mode="eval").body, used)
  except _NO_VALUE:
    return 0.0
  left = list(question.meta["nums"])
  for number in used:
    if number not in left:
      return 0.0
    left.remove(number)
  return float(value == fractions.Fraction(question.meta["target"]))


_LETTER = re.compile(
  r"[\s$*(\[]*(?:\\(?:text|textbf|mathrm|mathbf)\{)?[(\s]*([A-Z])"
  r"\s*(?:[).:,}\]*$\n]|$)"
)
# Deep nesting is a RecursionError, or a MemoryError of the parser.
_NO_VALUE = (
  SyntaxError,
  ValueError,
  ZeroDivisionError,
  RecursionError,
  MemoryError,
)
_SIGNS = {
  "*": "\\\\times|\\\\cdot|\N{MULTIPLICATION SIGN}|\N{MIDDLE DOT}",
  "/": "\\\\div|\N{DIVISION SIGN}",
  "-": "\N{MINUS SIGN}",
}


def _evaluate(node: ast.AST, used: list[int]) -> fractions.Fraction:
  match node:
    case ast.Constant(value=int(value)) if not isinstance(value, bool):
      used.append(value)
      return fractions.Fraction(value)
    case ast.UnaryOp(op=ast.USub(), operand=operand):
      return -_evaluate(operand, used)
    case ast.BinOp(left=left, op=sign, right=right):
      a, b = _evaluate(left, used), _evaluate(right, used)
      match sign:
        case ast.Add():
          return a + b
        case ast.Sub():
          return a - b
        case ast.Mult():
          return a * b
        case ast.Div():
          return a / b
  raise ValueError(f"{type(node).__name__} is not arithmetic")


def reasoning_gym(completion: str, question: types.Question) -> float:
  """Returns what reasoning-gym's own scorer gives the final answer.

  The question must come from a task `reasoning_gym/NAME`.
  """
  scorer = _reasoning_gym_scorer(question.meta["reasoning_gym"])
  return scorer(extraction.extract(completion), question.meta["entry"])


@functools.cache
def _reasoning_gym_scorer(name: str) -> Callable[[str, Any], float]:
  import reasoning_gym

  return reasoning_gym.get_score_answer_fn(name)  # pyright: ignore[reportReturnType] -- untyped package


_NAMED: dict[str, Verifier] = {
  "math": mathematics.verify,
  "exact": exact,
  "number": number,
  "expression": expression,
  "choice": choice_letter,
  "reasoning_gym": reasoning_gym,
}
NAMES = (*_NAMED, "regex", "code")
READ_ANSWERS = ("math", "exact", "number", "choice")
CANNOT_HANG = ("exact", "number", "expression", "choice")


def _find(name: str, pattern: str | None, sandbox: Sandbox) -> Verifier:
  if name == "regex":
    return _regex(pattern)
  if name == "code":
    return grading.Code(sandbox)
  if name == "reasoning_gym":
    own_code.imported(
      name, name, "reward.verifiers", "; install the extra `tasks`"
    )
  if name in _NAMED:
    return _NAMED[name]
  function = own_code.function(name, "reward.verifiers", NAMES)
  return cast(Verifier, signatures.adapted(function))


def _regex(pattern: str | None) -> Verifier:
  if pattern is None:
    raise errors.ConfigError(
      "reward.pattern must be set when reward.verifiers has regex, got None"
    )
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    raise errors.ConfigError(
      f"reward.pattern must be a regular expression, got {pattern!r}: {error}"
    ) from error
  return lambda completion, question: float(bool(compiled.search(completion)))
