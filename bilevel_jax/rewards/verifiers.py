"""Verifiers: functions (completion, question) -> value in [0, 1].

Nothing here needs JAX, so a scoring process that imports this module starts
quickly; and nothing here sets a time limit: a verifier may hang, which is
why those that can are run in processes that can be killed (`rewards.pool`).
"""

from __future__ import annotations

import ast
import fractions
import functools
import importlib
import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from bilevel_jax import config

if TYPE_CHECKING:
  from bilevel_jax import types

Verifier = Callable[[str, "types.Question"], float]


class Part(NamedTuple):
  """One term of a reward."""

  name: str
  weight: float
  verify: Verifier


def build(parts: Mapping[str, float], pattern: str | None = None) -> list[Part]:
  """Returns the terms of a reward.

  Args:
    parts: verifier -> weight. A verifier is a name of `NAMES` or a dotted
      path `package.module.function` (or `package.module:function`).
    pattern: regular expression of `regex`.

  Raises:
    ConfigError: an unknown name, a function that cannot be imported, or a
      missing or broken pattern.
  """
  if not parts:
    raise config.ConfigError("reward.verifiers must name at least one verifier")
  return [
    Part(name, float(weight), _find(name, pattern))
    for name, weight in parts.items()
  ]


def score(
  parts: list[Part], completion: str, question: types.Question
) -> tuple[float, bool] | None:
  """Returns (weighted sum, whether the first part is at its top).

  None if a verifier raises or returns something that is not a finite number.
  """
  try:
    values = [float(part.verify(completion, question)) for part in parts]
  except Exception:  # whatever it is, this completion cannot be scored
    return None
  total = sum(
    part.weight * value for part, value in zip(parts, values, strict=True)
  )
  return (total, values[0] >= 1) if math.isfinite(total) else None


def extract(completion: str) -> str:
  r"""Returns the final answer of a completion, stripped.

  The first of these that is there: the last complete `\boxed{...}`, the last
  `<answer>...</answer>`, what follows the last `####` on its line, what
  follows the last `#` of the last line, what follows the last `answer is` up
  to the end of the sentence, everything. Its time is linear in the length.
  """
  if box := _last_box(completion):
    return completion[slice(*box)].strip()
  for mark in (_ANSWER_TAG, _FOUR_HASHES):
    if found := mark.findall(completion):
      return found[-1].strip()
  last_line = completion.rstrip().rpartition("\n")[2]
  if "#" in last_line:
    return last_line.rpartition("#")[2].strip()
  found = _ANSWER_IS.findall(completion)
  return (found[-1] if found else completion).strip()


_ANSWER_TAG = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
_FOUR_HASHES = re.compile(r"####[ \t]*([^#\n]+)")
_ANSWER_IS = re.compile(
  r"answer\s*(?:is|:|=)[\s:]*((?:[^.\n]|\.(?=\S))+)", re.IGNORECASE
)
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def _last_box(text: str) -> tuple[int, int] | None:
  """Start and end of what is inside of the last complete box."""
  last = None
  stack: list[tuple[bool, int]] = []  # (is a box, where its inside starts)
  for match in _BRACES.finditer(text):
    if match[0] == "}":
      is_box, start = stack.pop() if stack else (False, 0)
      if is_box and (last is None or start > last[0]):
        last = (start, match.start())
    elif match[0].endswith("{") and match[0] != "\\{":
      stack.append((len(match[0]) > 1, match.end()))
  return last


def exact(completion: str, question: types.Question) -> float:
  """Returns 1 if the final answer is the answer, up to white space."""
  return float(extract(completion).split() == question.answer.split())


def number(completion: str, question: types.Question) -> float:
  """Returns 1 if the last number in the completion equals the answer."""
  answer = _last_number(question.answer)
  return float(answer is not None and _last_number(completion) == answer)


# A sign is one unless it stands between two operands.
_NUMBER = re.compile(
  r"(?:(?<![\w)\]}.])-)?"
  r"(?:(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
  r"(?:[eE][+-]?\d{1,3}(?!\d))?(?:/\d+)?",
  re.ASCII,
)
_LONGEST_NUMBER = 200  # characters; what is longer equals no answer


def _last_number(text: str) -> fractions.Fraction | None:
  found = _NUMBER.findall(text)
  return _as_number(found[-1]) if found else None


def _as_number(text: str) -> fractions.Fraction | None:
  if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
    return None
  top, _, bottom = text.replace(",", "").partition("/")
  divisor = fractions.Fraction(bottom or 1)
  return fractions.Fraction(top) / divisor if divisor else None


def mathematics(completion: str, question: types.Question) -> float:
  r"""Returns 1 if the final answer equals the answer as mathematics.

  Final answers (see `extract`) that are the same text, and numbers, are
  compared here. Everything else goes to math-verify, which reads the end of
  the completion: its boxes, else what is said to be the answer, else the last
  formula or number. Its own time limits are off, for they need SIGALRM, hence
  the main thread.
  """
  final = extract(completion)
  given, wanted = _plain(final), _plain(_unboxed(question.answer))
  if given == wanted and wanted:
    return 1.0
  value, target = _as_number(_bare(given)), _as_number(_bare(wanted))
  if value is not None and target is not None:
    # Six decimals are what math-verify compares.
    if value == target or round(value, 6) == round(target, 6):
      return 1.0
    if "%" not in given + wanted:
      return 0.0
  return float(_math_verify(question.answer, completion))


def _unboxed(answer: str) -> str:
  box = _last_box(answer)
  return answer[slice(*box)] if box else answer


_NOISE = re.compile(
  r"\s|\$|\\[!,;:$]|\\(?:left|right)(?![a-zA-Z])|\^\\circ|\^\{\\circ\}|\.$"
)
_WRAPPED = re.compile(r"\\(?:text|textbf|textnormal|mbox|mathrm)\{([^{}]*)\}")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")


def _plain(latex: str) -> str:
  unwrapped = _WRAPPED.sub(r"\1", latex)
  return _NOISE.sub("", unwrapped).replace("dfrac", "frac")


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
  box = _last_box(completion)
  # Some context, for an answer in several boxes or with a unit behind it.
  said = [match.span() for match in _ANSWER_IS.finditer(completion)]
  start, end = box or (said or [(len(completion),) * 2])[-1]
  if end - start > _LONGEST_FORMULA:
    return False
  context = completion[max(0, start - _CONTEXT) : end + 20]
  is_text = any(mark in answer for mark in ("$", "\\[", "\\(", "\\boxed"))
  gold = _parse(answer if is_text else f"${answer}$")
  return math_verify.verify(gold, _parse(context), timeout_seconds=None)


_LONGEST_FORMULA = 2000  # characters; what is longer equals no answer
_CONTEXT = 500  # characters before the last box or `answer is`, or of the end


@functools.lru_cache(maxsize=4096)
def _parse(latex: str) -> list[Any]:
  import math_verify

  return math_verify.parse(latex, parsing_timeout=None)  # pyright: ignore[reportArgumentType] -- None is off


def expression(completion: str, question: types.Question) -> float:
  """Returns 1 if an arithmetic expression solves a countdown question.

  The last line of the final answer, up to an `=`, must be made of the numbers
  in `question.meta["nums"]`, each at most once, of + - * / and parentheses,
  and be worth `question.meta["target"]`.
  """
  lines = extract(completion).splitlines() or [""]
  text = lines[-1].partition("=")[0].strip().strip("$").strip()
  for sign, latex in _SIGNS.items():
    text = re.sub(latex, sign, text)
  if len(text) > 40 * len(question.meta["nums"]):
    return 0.0  # also keeps the parser from deep nesting
  used: list[int] = []
  try:
    value = _evaluate(ast.parse(text, mode="eval").body, used)
  except (SyntaxError, ValueError, ZeroDivisionError):
    return 0.0
  left = list(question.meta["nums"])
  for number in used:
    if number not in left:
      return 0.0
    left.remove(number)
  return float(value == fractions.Fraction(question.meta["target"]))


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
  return scorer(extract(completion), question.meta["entry"])


@functools.cache
def _reasoning_gym_scorer(name: str) -> Callable[[str, Any], float]:
  import reasoning_gym

  return reasoning_gym.get_score_answer_fn(name)  # pyright: ignore[reportReturnType] -- untyped package


_NAMED: dict[str, Verifier] = {
  "math": mathematics,
  "exact": exact,
  "number": number,
  "expression": expression,
  "reasoning_gym": reasoning_gym,
}
NAMES = (*_NAMED, "regex")
CANNOT_HANG = ("exact", "number", "expression")


def _find(name: str, pattern: str | None) -> Verifier:
  if name == "regex":
    return _regex(pattern)
  if name == "reasoning_gym":
    _import("reasoning_gym", name, "; install the extra `tasks`")
  if name in _NAMED:
    return _NAMED[name]
  module, _, function = (
    name.partition(":") if ":" in name else name.rpartition(".")
  )
  if not module or not function:
    raise config.ConfigError(
      f"reward.verifiers takes {', '.join(NAMES)}, or a dotted path to a "
      f"function, got {name!r}"
    )
  if module == "__main__":
    raise config.ConfigError(
      f"reward.verifiers: {name!r} must be in a module that a scoring "
      "process can import, got __main__"
    )
  found = getattr(_import(module, name), function, None)
  if not callable(found):
    what = "has no" if found is None else "cannot call"
    raise config.ConfigError(
      f"reward.verifiers: {name!r}: module {module} {what} {function}"
    )
  return cast(Verifier, found)


def _import(module: str, name: str, hint: str = "") -> Any:
  try:
    return importlib.import_module(module)
  except Exception as error:  # a user's module may raise anything
    raise config.ConfigError(
      f"reward.verifiers: {name!r} cannot be imported: "
      f"{type(error).__name__}: {error}{hint}"
    ) from error


def _regex(pattern: str | None) -> Verifier:
  if pattern is None:
    raise config.ConfigError(
      "reward.pattern must be set when reward.verifiers has regex, got None"
    )
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    raise config.ConfigError(
      f"reward.pattern must be a regular expression, got {pattern!r}: {error}"
    ) from error
  return lambda completion, question: float(bool(compiled.search(completion)))
