"""Prints how fast answers are graded, beside math-verify alone.

  python benchmarks/grader.py --data shared/data

DIR holds `eval/*.jsonl` (a question a line, with its `answer`) and
`grader/*.jsonl` (`gold`, `pred` and the published label `equal`). Of each
benchmark, the answers of the first 200 questions are graded

- right: as they are written;
- wrong: each against the next question's answer;
- near: with one of their digits changed, where they have one;
- group: each of the first eighth against the next eight answers, as samples of
  a question share the reference.

Every line is two fresh processes, one for each grader; the first use of the
parser, which builds it, is left out of both. math-verify alone parses the
answer between dollar signs and the completion, with its own time limits.

Columns: pairs; how many ours leaves to the parser; of a published label's pairs
the share that each grader agrees with, else of all pairs the share in which
the graders agree; gradings a second of CPU time. --disagreements prints the
pairs in which the two graders differ.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import rich.console
import rich.table

from bilevel_jax import types
from bilevel_jax.rewards import mathematics, symbolic

BENCHMARKS = (
  "math500",
  "minerva_math",
  "olympiadbench_math_en",
  "gsm8k_test",
  "aime24",
  "amc23_40",
)
# File -> whether its predictions are answers, to be put in a box.
LABELLED = {
  "gsm8k_model_answers": True,
  "qwen_math_cot100_fulltext": False,
  "math_boxed_vs_normalised": True,
  "math_verify": False,
  "olympiadbench_scoring": True,
  "hendrycks_math_equivalence": True,
}
# Rows of math-verify's tests that ask for other settings than its defaults.
OTHER_SETTINGS = {"precision", "strict", "allow_set_relation_comp"}
GROUP = 8
LABELS = "labelled"


class Pair(NamedTuple):
  """A completion, the answer that it should give, and whether it does."""

  completion: str
  answer: str
  meta: dict[str, Any]
  label: bool | None


class Graded(NamedTuple):
  """What a grader said of some pairs, and what that cost."""

  verdicts: list[bool]
  seconds: float
  parsed: int


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code."""
  options = _parse(arguments)
  sets = _benchmarks(options)
  if LABELS in options.kinds:
    files = {name: labelled(options.data / "grader", name) for name in LABELLED}
    sets |= {name: pairs for name, pairs in files.items() if pairs}
  if not sets:
    print(f"no eval/*.jsonl or grader/*.jsonl in {options.data}")
    return 2
  table = rich.table.Table("pairs", "number", "parsed", "agree")
  for column in ("ours a second", "alone", "ratio"):
    table.add_column(column, justify="right")
  for name, pairs in sets.items():
    ours, alone = _in_fresh_processes(pairs)
    agreement = [_agreement(pairs, graded, alone) for graded in (ours, alone)]
    has_labels = pairs[0].label is not None
    rates = [len(pairs) / graded.seconds for graded in (ours, alone)]
    table.add_row(
      name,
      str(len(pairs)),
      str(ours.parsed),
      " / ".join(agreement) if has_labels else agreement[0],
      *(f"{rate:.0f}" for rate in rates),
      f"{rates[0] / rates[1]:.1f}",
    )
    print(f"{name}: {rates[0]:.0f} and {rates[1]:.0f}/s", file=sys.stderr)
    if options.disagreements:
      verdicts = zip(pairs, ours.verdicts, alone.verdicts, strict=True)
      for pair, mine, other in verdicts:
        if mine != other:
          print(f"{name}: ours {mine}, {pair.answer!r} <- {pair.completion!r}")
  rich.console.Console().print(table)
  return 0


def grade(pairs: list[Pair], ours: bool) -> Graded:
  """Returns one grader's verdicts.

  Args:
    pairs: that are graded, one after the other.
    ours: false for math-verify alone.
  """
  verify = _ours if ours else _alone
  symbolic.start()
  parsed = _counted(symbolic, "equivalent")
  start = time.process_time()
  verdicts = [verify(pair) for pair in pairs]
  return Graded(verdicts, time.process_time() - start, len(parsed))


def _ours(pair: Pair) -> bool:
  question = types.Question("", "", pair.answer, None, pair.meta)
  return mathematics.verify(pair.completion, question) == 1


def _alone(pair: Pair) -> bool:
  import math_verify

  marks = ("$", "\\[", "\\(", "\\boxed")
  is_text = any(mark in pair.answer for mark in marks)
  gold = math_verify.parse(pair.answer if is_text else f"${pair.answer}$")
  return math_verify.verify(gold, math_verify.parse(pair.completion))


def _counted(module: Any, name: str) -> list[None]:
  """A list that grows by one with every call of a module's function."""
  calls: list[None] = []
  function = getattr(module, name)

  def counting(*arguments: Any) -> Any:
    calls.append(None)
    return function(*arguments)

  setattr(module, name, counting)
  return calls


def _in_fresh_processes(pairs: list[Pair]) -> list[Graded]:
  with concurrent.futures.ProcessPoolExecutor(
    1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
  ) as processes:
    return list(processes.map(grade, [pairs, pairs], [True, False]))


def _agreement(pairs: list[Pair], graded: Graded, alone: Graded) -> str:
  labels = [pair.label for pair in pairs]
  wanted = alone.verdicts if None in labels else labels
  agree = map(bool.__eq__, graded.verdicts, wanted)
  return f"{sum(agree) / len(pairs):.2%}"


def _benchmarks(options: argparse.Namespace) -> dict[str, list[Pair]]:
  sets = {}
  for name in BENCHMARKS:
    rows = _rows(options.data / "eval" / f"{name}.jsonl")[: options.questions]
    for kind, function in KINDS.items():
      pairs = list(function(rows)) if rows and kind in options.kinds else []
      if pairs:
        sets[f"{name} {kind}"] = pairs
  return sets


def _pair(row: dict[str, Any], text: str) -> Pair:
  box = rf"\boxed{{{text}}}"
  return Pair(box, row["answer"], row.get("meta") or {}, None)


def _right(rows: list[dict[str, Any]]) -> Iterator[Pair]:
  return (_pair(row, row["answer"]) for row in rows)


def _wrong(rows: list[dict[str, Any]], following: int = 1) -> Iterator[Pair]:
  for i, row in enumerate(rows):
    for step in range(1, following + 1):
      yield _pair(row, rows[(i + step) % len(rows)]["answer"])


def _near(rows: list[dict[str, Any]]) -> Iterator[Pair]:
  """One digit is one more, the first, the second ... of them in turn."""
  for i, row in enumerate(rows):
    text = row["answer"]
    digits = [match.start() for match in re.finditer(r"\d", text)]
    if digits:
      at = digits[i % len(digits)]
      digit = str((int(text[at]) + 1) % 10)
      yield _pair(row, text[:at] + digit + text[at + 1 :])


def _group(rows: list[dict[str, Any]]) -> Iterator[Pair]:
  return _wrong(rows[: len(rows) // GROUP], GROUP)


KINDS: dict[str, Callable[[list[dict[str, Any]]], Iterator[Pair]]] = {
  "right": _right,
  "wrong": _wrong,
  "near": _near,
  "group": _group,
}


def labelled(folder: pathlib.Path, name: str) -> list[Pair]:
  """Returns the pairs of a file of published labels; [] where it is not.

  Args:
    folder: that the file is in.
    name: of the file, one of LABELLED.
  """
  return [
    Pair(
      rf"\boxed{{{row['pred']}}}" if LABELLED[name] else row["pred"],
      row["gold"],
      {},
      row["equal"],
    )
    for row in _rows(folder / f"{name}.jsonl")
    if not OTHER_SETTINGS & row.get("meta", {}).keys()
  ]


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
  if not path.is_file():
    return []
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--data", type=pathlib.Path, required=True, metavar="DIR", help="see above"
  )
  parser.add_argument(
    "--questions", type=int, default=200, help="of each benchmark, at most"
  )
  parser.add_argument(
    "--kinds",
    type=lambda text: text.split(","),
    default=[*KINDS, LABELS],
    help="right,wrong,near,group,labelled: which of them, all if not given",
  )
  parser.add_argument(
    "--disagreements", action="store_true", help="print them too"
  )
  return parser.parse_args(arguments)


if __name__ == "__main__":
  sys.exit(main())
