"""The verifier `code`: which tests a completion's program passes."""

import contextlib
import decimal
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bilevel_jax.rewards.sandbox import blocks, forms, programs
from bilevel_jax.rewards.sandbox.fork_server import (
  ForkServer,
  Program,
  ServerDied,
)
from bilevel_jax.rewards.sandbox.settings import Sandbox

if TYPE_CHECKING:
  from bilevel_jax import types


class Code:
  """A verifier; called with (completion, question), see `forms.tests_of`.

  What a test expects is compared in this process, or in one that runs the
  tests' own text and that no program can read: a program is given inputs and
  arguments, and what it answers is read as data.
  """

  def __init__(self, settings: Sandbox):
    self._settings = settings
    self._servers: dict[str, ForkServer] = {}

  def __call__(self, completion: str, question: "types.Question") -> float:
    """Returns the score of a completion's program, in [0, 1]."""
    tests = forms.tests_of(question)
    program = blocks.program(completion)
    passed, count = self.passed(program, tests) if program.strip() else (0, 1)
    share = passed / count
    return share if self._settings.score == "share" else float(share == 1)

  def passed(self, program: str, tests: forms.Tests) -> tuple[int, int]:
    """Returns how many tests a program passes, and how many there are.

    Where the score is 1 for all of them alone, tests behind the first that
    fails are not run.

    Raises:
      ServerDied: twice, so that nothing is known of the program.
    """
    due = time.monotonic() + self._settings.deadline_s
    try:
      return self._passed(program, tests, due)
    except ServerDied:
      self.close()  # the other may have died too
      return self._passed(program, tests, due)

  def _passed(
    self, program: str, tests: forms.Tests, due: float
  ) -> tuple[int, int]:
    match tests:
      case forms.Streams(cases):
        found = (self._answers(program, *case, due) for case in cases)
        return self._count(found), len(cases)
      case forms.Calls(function, cases):
        with self._served(program, due) as served:
          if served is None:
            return 0, len(cases)
          asking = programs.Asking(self._exchange(served, due))
          return self._count(_returns(asking, function, cases)), len(cases)
      case forms.Asserts():
        return self._checked(program, tests, due), len(tests.statements)

  def _count(self, found: Iterable[bool]) -> int:
    """Returns how many passed, up to the first that did not."""
    if self._settings.score == "share":
      return sum(found)
    return sum(1 for _ in itertools.takewhile(bool, found))

  def _test_due(self, due: float) -> float:
    return min(due, time.monotonic() + self._settings.test_s)

  def _answers(self, program: str, given: str, out: str, due: float) -> bool:
    """Whether a program answers an input with an output."""
    if time.monotonic() >= due:
      return False
    job = self._job("run", program=program)
    with self._server("programs").start(job, given.encode()) as run:
      code = run.wait(self._test_due(due))
      return code == 0 and same_output(run.output(), out)

  @contextlib.contextmanager
  def _served(self, program: str, due: float) -> Iterator[Program | None]:
    """Yields a process that answers for a program; None: the program fails."""
    job = self._job("serve", program=program)
    with self._server("programs").start(job) as served:
      ready = served.receive(self._test_due(due))
      yield served if ready == b'{"v": null}' else None

  def _exchange(self, served: Program, due: float) -> Callable[[Any], Any]:
    def exchange(question: Any) -> Any:
      test_due = self._test_due(due)
      served.send(json.dumps(question).encode(), test_due)
      if (answer := served.receive(test_due)) is None:
        raise EOFError
      return json.loads(answer)

    return exchange

  def _checked(self, program: str, tests: forms.Asserts, due: float) -> int:
    """Returns how many of the statements of tests a program passes."""
    job = self._job(
      "check",
      setup=tests.setup,
      statements=list(tests.statements),
      entry=tests.entry,
      go_on=self._settings.score == "share",
    )
    with (
      self._served(f"{tests.before}\n{program}", due) as served,
      self._server("tests").start(job) as checks,
    ):
      if served is None:
        return 0
      while (asked := checks.receive(due)) is not None:
        if not asked.startswith(b"["):  # a question of Asking
          return sum(json.loads(asked)["passed"])
        test_due = self._test_due(due)
        served.send(asked, test_due)
        answer = served.receive(test_due)
        if answer is None or not checks.send(answer, due):
          checks.no_more()
      return 0

  def _job(self, kind: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "cpu_s": self._settings.cpu_s, **more}

  def _server(self, what: str) -> ForkServer:
    """Returns the server of programs, or that of tests; starts it if need be.

    They are two: a program must not reach what knows its tests.
    """
    if what not in self._servers or self._servers[what].is_over:
      self._servers[what] = ForkServer(self._settings)
    return self._servers[what]

  def close(self) -> None:
    """Ends the processes."""
    for server in self._servers.values():
      server.close()
    self._servers = {}


def _returns(
  asking: programs.Asking,
  function: str,
  cases: Sequence[tuple[list[Any], list[Any]]],
) -> Iterator[bool]:
  """Yields whether each call returns a value that is right."""
  for arguments, right in cases:
    try:
      found = _as_json(asking.ask("name", function)(*arguments))
      yield any(found == value for value in right)
    except Exception:  # of the program, or of what it has sent
      yield False


def _as_json(value: Any) -> Any:
  """Returns a value as it would be read from JSON: with lists for tuples."""
  if isinstance(value, (list, tuple)):
    return [_as_json(item) for item in value]
  if isinstance(value, dict):
    return {key: _as_json(item) for key, item in value.items()}
  return value


def same_output(output: bytes, expected: str) -> bool:
  """Returns whether an output is right, as LiveCodeBench judges it.

  Lines are compared without white space at their ends; where two of them
  differ, they may be the same numbers.
  """
  found, right = (
    [line.strip() for line in text.strip().split("\n")]
    for text in (output.decode(errors="replace"), expected)
  )
  return len(found) == len(right) and all(
    a == b or _same_numbers(a, b) for a, b in zip(found, right, strict=True)
  )


def _same_numbers(a: str, b: str) -> bool:
  try:
    return [*map(decimal.Decimal, a.split())] == [
      *map(decimal.Decimal, b.split())
    ]
  except decimal.InvalidOperation:
    return False
