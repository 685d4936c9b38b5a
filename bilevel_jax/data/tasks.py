"""Procedural questions: arithmetic, countdown, programs, reasoning-gym's.

A task is an endless sequence of distinct questions that its seed and options
determine. A question belongs to the split `test` if the CRC-32 of its text is
divisible by ten and to `train` if not, whatever the seed, so a model that was
trained on one never saw the other.
"""

import difflib
import fractions
import functools
import itertools
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bilevel_jax import errors, types

DEFAULT_COUNT = 10_000
SPLITS = ("train", "test")
_SHARES = (
  "guess_share", "slip_share", "wrong_answer_share", "other_operation_share"
)  # fmt: skip
_LONGEST = 100  # steps, or numbers, of a question
_PATIENCE = 10_000  # draws in a row without a new question that end a corpus

_Draws = Iterator[types.Question | None]  # None is a bad draw


def generate(
  task: str,
  *,
  first: int = 0,
  count: int | None = None,
  seed: int = 0,
  split: str = "train",
  options: Mapping[str, Any] | None = None,
) -> list[types.Question]:
  """Returns questions `first` to `first + count` of a task's sequence.

  Args:
    count: questions to return; default `DEFAULT_COUNT`.
    split: `train` or `test`; the two have no question in common.
    options: arguments of the task (`arithmetic`, `countdown`, `programs`, or
      those of the reasoning-gym data set's configuration).

  Raises:
    ConfigError: an unknown task, split or option, or too few questions.
  """
  if split not in SPLITS:
    raise errors.ConfigError(
      f"the split of a procedural task must be one of {', '.join(SPLITS)}, "
      f"got {split!r}"
    )
  wanted = first + (DEFAULT_COUNT if count is None else count)
  found: dict[str, types.Question] = {}
  in_vain = 0
  for question in _draws(task, seed, dict(options or {})):
    if len(found) == wanted or in_vain > _PATIENCE:
      break
    in_vain += 1
    if question is None or question.question in found:
      continue
    if (zlib.crc32(question.question.encode()) % 10 == 0) != (split == "test"):
      continue
    in_vain = 0
    name = f"{task}-{split}-{seed}-{len(found)}"
    found[question.question] = question._replace(id=name)
  if len(found) < wanted:
    raise errors.ConfigError(
      f"task {task} has too few questions with these options: {wanted} "
      f"wanted, {len(found)} distinct ones found"
    )
  return list(found.values())[first:]


def arithmetic(
  rng: random.Random,
  *,
  steps: int | Sequence[int] = (1, 3),
  max_operand: int = 99,
  operators: str = "+-*",
  max_value: int = 999,
  min_value: int = 0,
  guess_share: float = 0.0,
  slip_share: float = 0.0,
  wrong_answer_share: float = 0.0,
  other_operation_share: float = 0.0,
) -> types.Question | None:
  """Returns a chain of operations on integers, or None for a bad draw.

  `17+25*2-8` has the solution `25*2=50;17+50=67;67-8=59;#59`: one operation at
  a time, products and quotients first, then from left to right. Every value
  written is an integer from `min_value` to `max_value`. The meta has the number
  of `steps` and the `kind` of solution: `worked`, `guess`, `slip`,
  `wrong_answer` or `other_operation`. The same questions are spoiled, in
  whatever way; one that cannot be is left out.

  Args:
    steps: operations, or the least and the most of them.
    max_operand: operands are integers from 1 to this.
    operators: the ones to draw from, of `+-*/`.
    max_value: largest value that may appear.
    min_value: smallest value that may appear.
    guess_share: share of solutions that are the answer without a step, for
      policies that have yet to learn to reason.
    slip_share: share of solutions with a slip: the result of one step, not the
      last, is wrong by 1 to 9. What follows is that of the right solution and
      not computed from the wrong result, so the final answer is right and no
      check of answers finds the slip. A question of one step has none.
    wrong_answer_share: share of solutions whose last result, and with it the
      answer, is wrong by 1 to 9.
    other_operation_share: share of solutions that are right for the question
      with one operator changed for another of `operators`.
  """
  length = _between(rng, steps)
  values = [rng.randint(1, max_operand) for _ in range(length + 1)]
  signs = [rng.choice(operators) for _ in range(length)]
  text = str(values[0]) + "".join(
    f"{sign}{value}" for sign, value in zip(signs, values[1:], strict=True)
  )
  lowest, highest = min_value, max_value
  lines = _worked(values, signs, lowest, highest)
  if lines is None:
    return None
  answer = written = lines[-1].split("=")[1]
  shares = {
    "guess": guess_share,
    "slip": slip_share if length > 1 else 0.0,
    "wrong_answer": wrong_answer_share,
    "other_operation": other_operation_share,
  }
  place = rng.random() if any((*shares.values(), slip_share)) else 1.0
  ends = itertools.accumulate(shares.values())
  kind = next(
    (k for k, end in zip(shares, ends, strict=True) if place < end), "worked"
  )
  # Its own stream: the same questions are spoiled, in whatever way.
  choices = random.Random(text)
  if kind == "guess":
    lines = []
  elif kind == "other_operation":
    others = [
      changed
      for at, sign in enumerate(signs)
      for other in operators
      if other != sign
      and (changed := [*signs[:at], other, *signs[at + 1 :]])
      and _worked(values, changed, lowest, highest)
    ]
    if not others:
      return None
    lines = _worked(values, choices.choice(others), lowest, highest) or []
    written = lines[-1].split("=")[1]
  elif kind != "worked":
    last = len(lines) - 1
    wrong = last if kind == "wrong_answer" else choices.randrange(last)
    operation, right = lines[wrong].split("=")
    near = range(max(int(right) - 9, lowest), min(int(right) + 9, highest) + 1)
    results = [value for value in near if value != int(right)]
    if not results:
      return None
    result = choices.choice(results)
    lines[wrong] = f"{operation}={result}"
    written = str(result) if wrong == last else answer
  solution = ";".join([*lines, f"#{written}"])
  meta = {"steps": length, "kind": kind}
  return types.Question("", text, answer, solution, meta)


def _worked(
  values: Sequence[int], signs: Sequence[str], lowest: int, highest: int
) -> list[str] | None:
  """Returns `a+b=c` for each operation in turn; None: a value out of bounds."""
  values, signs, lines = list(values), list(signs), []
  while signs:
    at = next((i for i, s in enumerate(signs) if s in "*/"), 0)
    value = _apply(signs[at], values[at], values[at + 1])
    if value.denominator != 1 or not lowest <= value <= highest:
      return None
    lines.append(f"{values[at]}{signs[at]}{values[at + 1]}={value}")
    values[at : at + 2] = [int(value)]
    del signs[at]
  return lines


def countdown(
  rng: random.Random,
  *,
  numbers: int | Sequence[int] = (3, 4),
  max_number: int = 99,
  max_target: int = 999,
) -> types.Question | None:
  """Returns a countdown question, or None for a bad draw.

  The target is made by combining all the numbers, two at a time, every value
  on the way a positive integer; the solution shows that way.

  Args:
    numbers: how many numbers, or the least and the most.
    max_number: numbers are from 1 to this.
    max_target: largest value that may appear.
  """
  given = [rng.randint(1, max_number) for _ in range(_between(rng, numbers))]
  pool = [(value, str(value)) for value in given]
  lines = []
  while len(pool) > 1:
    (a, left), (b, right) = (
      pool.pop(rng.randrange(len(pool))) for _ in range(2)
    )
    sign = rng.choice("+-*/")
    value = _apply(sign, a, b)
    if value.denominator != 1 or not 0 < value <= max_target:
      return None
    lines.append(f"{a} {sign} {b} = {value}")
    left, right = (f"({t})" if " " in t else t for t in (left, right))
    pool.append((int(value), f"{left} {sign} {right}"))
  target, answer = pool[0]
  lines += [f"So {answer} = {target}.", f"The answer is \\boxed{{{answer}}}."]
  return types.Question(
    "",
    f"Using the numbers {given}, create an equation that equals {target}. You "
    "can use basic arithmetic operations (+, -, *, /) and each number can only "
    "be used once.",
    answer,
    "\n".join(lines),
    {"nums": given, "target": target},
  )


def programs(
  rng: random.Random, *, max_operand: int = 9, max_input: int = 9
) -> types.Question:
  """Returns a question of the program that two examples determine.

  Such as `f(2)=5 f(4)=7`, which `f=lambda x:x+3` answers: the verifier `code`
  calls `f` with four other numbers.

  Args:
    max_operand: what is added, subtracted or multiplied by is from 2 to this.
    max_input: numbers that are given are from 0 to this.
  """
  sign, operand = rng.choice("+-*"), rng.randint(2, max(2, max_operand))
  inputs = rng.sample(range(max(max_input, 5) + 1), 6)
  outputs = [int(_apply(sign, x, operand)) for x in inputs]
  shown = [f"f({x})={y}" for x, y in zip(inputs, outputs, strict=True)]
  program = f"f=lambda x:x{sign}{operand}"
  tests = {
    "fn_name": "f",
    "inputs": [[x] for x in inputs[2:]],
    "outputs": outputs[2:],
  }
  return types.Question(
    "", " ".join(shown[:2]), program, program, {"tests": tests}
  )


_TASKS = {
  "arithmetic": arithmetic,
  "countdown": countdown,
  "programs": programs,
}
NAMES = tuple(_TASKS)


def _draws(task: str, seed: int, options: dict[str, Any]) -> _Draws:
  if task.startswith("reasoning_gym/"):
    return _reasoning_gym(task.removeprefix("reasoning_gym/"), seed, options)
  if task not in _TASKS:
    raise errors.ConfigError(
      f"task must be one of {', '.join(_TASKS)}, reasoning_gym/NAME, "
      f"got {task!r}"
    )
  make = _TASKS[task]
  allowed = make.__kwdefaults__
  for name, value in options.items():
    if name not in allowed:
      raise errors.ConfigError(
        f"task {task} takes the options {', '.join(allowed)}, got {name!r}"
      )
    if rule := _broken_rule(name, value):
      raise errors.ConfigError(f"task {task}: {name} {rule}, got {value!r}")
  shares = {name: options[name] for name in _SHARES if name in options}
  if sum(shares.values()) > 1:
    raise errors.ConfigError(
      f"task {task}: {' + '.join(shares)} must be at most 1, got "
      f"{' + '.join(map(str, shares.values()))}"
    )

  rng = random.Random(f"{task}/{seed}")
  return (make(rng, **options) for _ in itertools.repeat(None))


def _broken_rule(name: str, value: Any) -> str | None:
  if name == "operators":
    if isinstance(value, str) and value and set(value) <= set("+-*/"):
      return None
    return "must be some of +-*/"
  if name in ("steps", "numbers"):
    least = 1 if name == "steps" else 2
    ends = [value, value] if type(value) is int else value
    if (
      isinstance(ends, (list, tuple))
      and [type(end) for end in ends] == [int, int]
      and least <= ends[0] <= ends[1] <= _LONGEST
    ):
      return None
    return f"must be an integer from {least} to {_LONGEST} or [least, most]"
  if name in _SHARES:
    if type(value) in (int, float) and 0 <= value <= 1:
      return None
    return "must be a number from 0 to 1"
  if type(value) is int and (name == "min_value" or value >= 1):
    return None
  return "must be an integer" + ("" if name == "min_value" else " from 1")


def _between(rng: random.Random, bounds: Any) -> int:
  return bounds if isinstance(bounds, int) else rng.randint(*bounds)


def _apply(sign: str, a: int, b: int) -> fractions.Fraction:
  if sign == "/":
    return fractions.Fraction(a, b) if b else fractions.Fraction(1, 2)
  return fractions.Fraction({"+": a + b, "-": a - b, "*": a * b}[sign])


def _reasoning_gym(name: str, seed: int, options: dict[str, Any]) -> _Draws:
  try:
    import reasoning_gym
    from reasoning_gym import factory
  except ImportError as error:
    raise errors.ConfigError(
      f"task reasoning_gym/{name} needs the package reasoning-gym: install "
      "the extra `tasks` (pip install 'bilevel_jax[tasks]')"
    ) from error
  if name not in factory.DATASETS:
    close = difflib.get_close_matches(name, factory.DATASETS, n=1)
    raise errors.ConfigError(
      f"reasoning_gym has no data set {name!r}"
      + (f", did you mean {close[0]}?" if close else "")
    )
  try:
    # The size is virtual for most data sets: an entry is made when asked for.
    entries = reasoning_gym.create_dataset(
      name, **{"seed": seed, "size": 1_000_000, **options}
    )
  except (AssertionError, TypeError, ValueError) as error:
    raise errors.ConfigError(
      f"task reasoning_gym/{name} refuses {options}: {error}"
    ) from error

  return map(functools.partial(_from_entry, name), entries)


def _from_entry(name: str, entry: dict[str, Any]) -> types.Question:
  answer = "" if entry["answer"] is None else str(entry["answer"])
  meta = {"reasoning_gym": name, "entry": entry}
  return types.Question("", entry["question"], answer, None, meta)
