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
    raise config.ConfigError("reward.parts must name at least one verifier")
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
  `<answer>...</answer>`, what follows the last `#`s on their line, what
  follows the last `answer is` up to the end of the sentence, everything.
  """
  found = _boxed(completion)
  if found is None:
    for pattern in _MARKS:
      if matches := pattern.findall(completion):
        found = matches[-1]
        break
  return (completion if found is None else found).strip()


_MARKS = (
  re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL),
  re.compile(r"#[ \t]*([^#\n]+)"),
  re.compile(r"answer\s*(?:is|:|=)[\s:]*((?:[^.\n]|\.(?=\S))+)", re.IGNORECASE),
)


def _boxed(text: str) -> str | None:
  start = len(text)
  while (start := text.rfind("\\boxed", 0, start)) >= 0:
    brace = start + len("\\boxed")
    if text[brace : brace + 1] != "{":
      continue
    depth = 0
    for match in _BRACES.finditer(text, brace):
      depth += {"{": 1, "}": -1}.get(match[0], 0)
      if not depth:
        return text[brace + 1 : match.start()]
  return None


_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


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
  r"(?:(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)(?:\.\d+)?|\.\d+)"
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

  The final answer is the last complete `\boxed{...}`, else what is marked as
  the answer (see `extract`), else the last number. Texts that are the same,
  and numbers, are compared here; everything else by math-verify, whose own
  time limits are off, for they need SIGALRM and so the main thread.
  """
  final = extract(completion)
  if final == completion.strip() and _plain(final) != _plain(question.answer):
    numbers = _NUMBER.findall(completion)
    final = numbers[-1] if numbers else final
  given, wanted = _plain(final), _plain(question.answer)
  if given == wanted and wanted:
    return 1.0
  value, target = _as_number(_bare(given)), _as_number(_bare(wanted))
  if value is not None and target is not None:
    # Six decimals are what math-verify compares.
    if value == target or round(value, 6) == round(target, 6):
      return 1.0
    if "%" not in given + wanted:
      return 0.0
  return float(_math_verify(question.answer, final))


_NOISE = re.compile(
  r"\s|\$|\\[!,;:$]|\\(?:left|right)(?![a-zA-Z])|\^\\circ|\^\{\\circ\}|\.$"
)
_WRAPPED = re.compile(r"\\(?:text|mbox|mathrm|textbf)\{([^{}]*)\}")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")


def _plain(latex: str) -> str:
  unwrapped = _WRAPPED.sub(r"\1", latex)
  return _NOISE.sub("", unwrapped).replace("dfrac", "frac")


def _bare(plain: str) -> str:
  fraction = _FRACTION.fullmatch(plain)
  if fraction:
    return "{}{}/{}".format(*fraction.groups())
  return plain.removesuffix("%").removesuffix("\\")


def _math_verify(answer: str, final: str) -> bool:
  import math_verify

  # A warning that the limits are off, and one for each text it cannot read.
  for name in ("math_verify", "latex2sympy2_extended"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  return math_verify.verify(_parse(answer), _parse(final), timeout_seconds=None)


@functools.lru_cache(maxsize=4096)
def _parse(latex: str) -> list[Any]:
  import math_verify

  text = latex if "\\boxed" in latex else f"\\boxed{{{latex}}}"
  return math_verify.parse(text, parsing_timeout=None)  # pyright: ignore[reportArgumentType] -- None is off


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

  return reasoning_gym.get_score_answer_fn(name)  # pyright: ignore[reportReturnType]


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
      f"reward.parts takes {', '.join(NAMES)}, or a dotted path to a function, "
      f"got {name!r}"
    )
  if module == "__main__":
    raise config.ConfigError(
      f"reward.parts: {name!r} must be in a module that a scoring process can "
      "import, got __main__"
    )
  found = getattr(_import(module, name), function, None)
  if not callable(found):
    what = "has no" if found is None else "cannot call"
    raise config.ConfigError(
      f"reward.parts: {name!r}: module {module} {what} {function}"
    )
  return cast(Verifier, found)


def _import(module: str, name: str, hint: str = "") -> Any:
  try:
    return importlib.import_module(module)
  except Exception as error:  # a user's module may raise anything
    raise config.ConfigError(
      f"reward.parts: {name!r} cannot be imported: "
      f"{type(error).__name__}: {error}{hint}"
    ) from error


def _regex(pattern: str | None) -> Verifier:
  if pattern is None:
    raise config.ConfigError(
      "reward.pattern must be set when reward.parts has regex, got None"
    )
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    raise config.ConfigError(
      f"reward.pattern must be a regular expression, got {pattern!r}: {error}"
    ) from error
  return lambda completion, question: float(bool(compiled.search(completion)))
