"""Prints how many programs a second are scored, by form of their tests.

  python benchmarks/sandbox.py --workers 2 --programs 500

Each line is a pool of scoring processes with its own fork servers, given the
same short program over and over: right ones and wrong ones in turn. What limits
it is the fork of an interpreter: `fork` is the same without any test, in one
process. Columns: programs a second by the clock; the median, and the longest,
that one took in a single process; descriptors of this process, and kB of memory
of its servers, more than after the first 50.
"""

import argparse
import contextlib
import functools
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import rich.console
import rich.table

from bilevel_jax import types
from bilevel_jax.rewards import pool
from bilevel_jax.rewards.sandbox import fork_server, grading
from bilevel_jax.rewards.sandbox.settings import Sandbox

_WARM = 50
# Form -> (tests, a program that passes them, one that does not).
FORMS = {
  "read and written": (
    {"inputs": ["1 2\n"], "outputs": ["3\n"]},
    "print(sum(map(int, input().split())))",
    "print(4)",
  ),
  "calls": (
    {"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, 7]},
    "def add(a, b): return a + b",
    "def add(a, b): return a",
  ),
  "asserts": (
    ["assert add(1, 2) == 3", "assert add(3, 4) == 7"],
    "def add(a, b): return a + b",
    "def add(a, b): return a",
  ),
}


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints the table; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--programs", type=int, default=500, help="of each line")
  parser.add_argument("--workers", type=int, default=2, help="of the pool")
  parser.add_argument("--isolation", default="auto", help="sandbox.isolation")
  options = parser.parse_args(arguments)
  sandbox = Sandbox(isolation=options.isolation, deadline_s=60.0, test_s=60.0)
  console = rich.console.Console(highlight=False, width=120)
  console.print(f"isolation: {fork_server.in_force(sandbox)}")
  table = rich.table.Table("tests", box=None)
  for column in (
    *("programs/s", "median ms", "longest ms", "descriptors", "kB"),
  ):
    table.add_column(column, justify="right")
  with contextlib.closing(fork_server.ForkServer(sandbox)) as server:
    run = functools.partial(_fork, server)
    table.add_row("fork", "", *_alone(run, options.programs))
  for form in FORMS:
    pooled = _in_pool(form, sandbox, options.programs, options.workers)
    with contextlib.closing(grading.Code(sandbox)) as code:
      run = functools.partial(_score, code, form)
      table.add_row(form, pooled, *_alone(run, options.programs))
  console.print(table)
  return 0


def _question(form: str) -> types.Question:
  return types.Question("", "", "", None, {"tests": FORMS[form][0]})


def _in_pool(form: str, sandbox: Sandbox, count: int, workers: int) -> str:
  tests = [_question(form)] * count
  texts = [FORMS[form][1 + n % 2] for n in range(count)]
  with pool.Scorer(
    {"code": 1.0}, deadline_s=120.0, workers=workers, sandbox=sandbox
  ) as scorer:
    scorer.score(texts[: 4 * workers], tests[: 4 * workers])
    start = time.monotonic()
    scores = scorer.score(texts, tests)
    took = time.monotonic() - start
  if scores.rewards.tolist() != [float(n % 2 == 0) for n in range(count)]:
    raise RuntimeError(f"{form}: programs are not judged as they must be")
  return f"{count / took:.0f}"


def _fork(server: fork_server.ForkServer, number: int) -> None:
  del number
  job = {"kind": "run", "program": "", "cpu_s": 10}
  with server.start(job) as program:
    program.wait(time.monotonic() + 60.0)


def _score(code: grading.Code, form: str, number: int) -> None:
  code(FORMS[form][1 + number % 2], _question(form))


def _alone(run: Callable[[int], None], count: int) -> list[str]:
  """Returns the median and the longest time in ms, and what was left."""
  times, before = [], (0, 0)
  for number in range(count):
    if number == min(_WARM, count - 1):
      before = _held()
    start = time.monotonic()
    run(number)
    times.append(1000 * (time.monotonic() - start))
  after = _held()
  left = [f"{new - old:+d}" for old, new in zip(before, after, strict=True)]
  return [f"{statistics.median(times):.1f}", f"{max(times):.0f}", *left]


def _held() -> tuple[int, int]:
  """Returns the descriptors of this process, and kB of those below it."""
  kilobytes, parents = 0, [os.getpid()]
  for parent in parents:
    threads = pathlib.Path(f"/proc/{parent}/task")
    for child in threads.glob("*/children"):
      parents += map(int, child.read_text().split())
  for process in parents[1:]:
    pages = pathlib.Path(f"/proc/{process}/statm").read_text().split()[1]
    kilobytes += int(pages) * os.sysconf("SC_PAGESIZE") // 1024
  return len(os.listdir("/proc/self/fd")), kilobytes


if __name__ == "__main__":
  sys.exit(main())
