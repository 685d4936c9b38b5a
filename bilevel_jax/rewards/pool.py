"""Scoring in processes that can be killed, a deadline for each completion."""

import collections
import io
import json
import math
import os
import pickle
import secrets
import select
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bilevel_jax import errors, limited_process, types
from bilevel_jax.rewards import verifiers
from bilevel_jax.rewards.sandbox import fork_server
from bilevel_jax.rewards.sandbox.settings import Sandbox

_WORKER = "bilevel_jax.rewards.worker"
_LOOK_S = 0.5  # time between two looks at the clock, at most
_LONGEST = 2**20  # bytes of an answer
_START_LIMIT_S = 300.0  # for the imports of a user's verifier
_FAILURES_KEPT = 20
_FAILED_STARTS = 3  # in a row, after which scoring is given up

# The value of each part, or why there is no score.
_Answer = list[float | None] | str


class Failure(NamedTuple):
  """A completion that could not be scored."""

  completion: str
  reason: str


class Scorer:
  """Scores completions; a context manager that leaves no process behind.

  Verifiers that cannot hang are called here; if any other is among the parts,
  every item goes to a scoring process. Such a process answers one item after
  the other; when an answer is late, or the process dies, that one completion
  counts as unscorable, and the process is replaced. A process that had scored
  others before it died, or ran out of memory, may have done so for what they
  left behind: the completion is scored again by a fresh one. Time in which
  this process was stopped (Ctrl-Z) does not count.
  """

  def __init__(
    self,
    parts: Mapping[str, float],
    *,
    pattern: str | None = None,
    by: verifiers.Choice | None = None,
    sandbox: Sandbox = Sandbox(),
    deadline_s: float = 5.0,
    memory: int | None = 4 * 10**9,
    workers: int | None = 2,
  ):
    """Builds the verifiers and starts the processes, without waiting for them.

    Args:
      parts: verifier -> weight, see `verifiers.build`.
      by: chooses one of the parts for each question; None: all count.
      sandbox: for the programs of the verifier `code`.
      deadline_s: seconds that scoring one completion may take.
      memory: bytes that a process may have, see `limited_process`.
      workers: scoring processes; None: as many as cores that it may use.

    Raises:
      ConfigError: a verifier that cannot be built, a sandbox that cannot be
        had, or a deadline that is not a finite number above 0.
    """
    if not 0 < deadline_s < math.inf:
      raise errors.ConfigError(
        "reward.deadline_s must be a finite number of seconds above 0, got "
        f"{deadline_s}"
      )
    self._parts = verifiers.build(parts, pattern, sandbox)
    self._by = by
    self.isolation: str | None = None
    """What programs run in, where there are any, in words."""
    if "code" in parts:
      self.isolation = fork_server.in_force(sandbox)
    names = types.Question._fields, types.Dialogue._fields
    setup = (dict(parts), pattern, sandbox, by, names)
    self._start = lambda: _Worker(setup, deadline_s, memory)
    self._lock = threading.Lock()
    self._failed_starts = 0
    self.replaced = 0  # processes that died or were killed, so far
    self._failures: list[Failure] = []
    self._in_process = set(parts) <= set(verifiers.CANNOT_HANG)
    cores = len(os.sched_getaffinity(0)) if workers is None else workers
    count = 0 if self._in_process else cores
    self._workers = [self._start() for _ in range(count)]

  def __enter__(self) -> "Scorer":
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  @property
  def process_ids(self) -> list[int]:
    """Ids of the scoring processes of the moment."""
    return [worker.process_id for worker in self._workers]

  def close(self) -> None:
    """Ends every process."""
    for worker in self._workers:
      worker.end()
    self._workers = []

  def check(self, questions: Iterable[types.Question]) -> None:
    """Returns if each question has what its verifier asks of it.

    Raises:
      ConfigError: naming the first that has not.
    """
    verifiers.check([part.name for part in self._parts], self._by, questions)

  def take_failures(self) -> list[Failure]:
    """Returns the first 20 failures since the last time that it was asked."""
    taken, self._failures = self._failures, []
    return taken

  def score(
    self, completions: Sequence[str], questions: Sequence[types.Question]
  ) -> types.Scores:
    """Returns the scores of N completions.

    Args:
      questions: N questions, the one that each of them answers.

    Raises:
      RuntimeError: the scorer is closed, or its processes cannot start.
    """
    pairs = list(zip(completions, questions, strict=True))
    if self._in_process:
      answers = [
        verifiers.evaluate(self._parts, *pair, self._by) for pair in pairs
      ]
    else:
      with self._lock:
        try:
          answers = self._score_in_workers(pairs)
        except BaseException:
          # Answers that are still to come would be taken for the next call's.
          self.close()
          raise
    self._failures += [
      Failure(completion, answer)
      for (completion, _), answer in zip(pairs, answers, strict=True)
      if isinstance(answer, str)
    ]
    del self._failures[_FAILURES_KEPT:]
    found = [
      (0.0, False) if isinstance(a, str) else verifiers.total(self._parts, a)
      for a in answers
    ]
    none = [None] * len(self._parts)
    values = [none if isinstance(a, str) else a for a in answers]
    return types.Scores(
      rewards=np.array([reward for reward, _ in found], np.float32),
      scored=np.array([not isinstance(a, str) for a in answers], bool),
      correct=np.array([correct for _, correct in found], bool),
      values=np.array(values, np.float32).reshape(len(pairs), len(self._parts)),
    )

  def _score_in_workers(
    self, pairs: list[tuple[str, types.Question]]
  ) -> list[_Answer]:
    if not self._workers:
      raise RuntimeError("the scorer is closed")
    answers: list[_Answer] = [""] * len(pairs)
    waiting = collections.deque(range(len(pairs)))
    again = list[int]()  # for processes that have scored nothing yet
    looked = time.monotonic()
    while True:
      for worker in self._workers:
        if worker.ready and worker.item is None:
          if again and worker.fresh:
            worker.give(item := again.pop(), pairs[item])
          elif waiting:
            worker.give(item := waiting.popleft(), pairs[item])
      idle = all(worker.item is None for worker in self._workers)
      if idle and not waiting and not again:
        return answers
      looked = self._wait(looked)
      for index, worker in enumerate(self._workers):
        item, fresh = worker.item, worker.fresh
        answer = worker.advance()
        if item is not None and answer is not None:
          if worker.ended and not fresh:
            again.append(item)
          else:
            answers[item] = answer
        if worker.ended or worker.late:
          self._workers[index] = self._replace(worker)
        elif worker.ready:
          self._failed_starts = 0

  def _wait(self, looked: float) -> float:
    """Waits for a process to say something or be late; returns the time."""
    poll = select.poll()
    for worker in self._workers:
      worker.register(poll)
    due = min(worker.due for worker in self._workers)
    left = min(due - time.monotonic(), _LOOK_S)
    poll.poll(1000 * max(0.0, left))
    now = time.monotonic()
    if now - looked > 2 * _LOOK_S:  # this process was stopped, perhaps all were
      for worker in self._workers:
        worker.due += now - looked
    return now

  def _replace(self, worker: "_Worker") -> "_Worker":
    code = worker.end()
    self.replaced += 1
    if not worker.ready:
      self._failed_starts += 1
      if worker.complaint or self._failed_starts == _FAILED_STARTS:
        reason = worker.complaint or f"the last one's exit code is {code}"
        raise RuntimeError(f"scoring processes cannot start: {reason}")
    return self._start()


class _Worker:
  """A scoring process, and the item that it was given and has not answered."""

  def __init__(self, setup: tuple, deadline_s: float, memory: int | None):
    requests, self._requests = _pipe("wb")
    answers, self._answers = _pipe("rb")
    # Not multiprocessing.Process: fork is not safe beside JAX's threads, and
    # spawn runs the parent's `__main__` again.
    self._process = limited_process.LimitedProcess.of_module(
      _WORKER,
      [requests, answers],
      memory=memory,
      env={"JAX_PLATFORMS": "cpu"},  # a verifier must not take the GPU
    )
    os.close(requests)
    os.close(answers)
    self.ready = self.late = self.ended = False
    self.fresh = True  # it has answered no item
    self.complaint: str | None = None
    self.item: int | None = None
    self.due = time.monotonic() + _START_LIMIT_S
    self._deadline_s, self._memory = deadline_s, memory
    self._parts = len(setup[0])
    self._secret, self._unsent, self._partial = "", b"", b""
    self._send(setup)

  @property
  def process_id(self) -> int:
    return self._process.process_id

  def give(self, item: int, pair: tuple[str, types.Question]) -> None:
    """Has the process score an item."""
    completion, question = pair
    self.item, self.due = item, time.monotonic() + self._deadline_s
    # As plain tuples: where their classes are, JAX is imported.
    dialogue = question.dialogue and tuple(question.dialogue)
    self._send((completion, tuple(question._replace(dialogue=dialogue))))

  def register(self, poll: select.poll) -> None:
    """Has a poll wait for what this process has to say, or can take."""
    poll.register(self._answers, select.POLLIN)
    if self._unsent:
      poll.register(self._requests, select.POLLOUT)

  def advance(self) -> _Answer | None:
    """Returns the answer to the item, once there is one or can be none."""
    self._write()
    data = self._answers.read(2**16)  # None: nothing is there yet
    *lines, self._partial = (self._partial + (data or b"")).split(b"\n")
    if len(self._partial) > _LONGEST:
      self._partial = b""
    for line in lines:
      found = _parsed(line, self._secret, self._parts)
      if found is not None:
        self._secret, self.due = "", math.inf
        answer, self.ended = found
        if self.ready:
          if self.ended and isinstance(answer, str) and self._memory:
            answer += f" (reward.memory allows {self._memory / 1e9:g} GB)"
          self.item, self.fresh = None, False
          return answer
        self.complaint = str(answer) or None
        self.ready = not self.ended
    if data == b"":
      self.ended = True
      return f"the scoring process ended (exit code {self.end()})"
    if time.monotonic() >= self.due:
      self.late = True
      return f"scoring took longer than {self._deadline_s:g} s"
    return None

  def end(self) -> int:
    """Returns the exit code, after ending the process and its children."""
    self._requests.close()
    self._answers.close()
    return self._process.end()

  def _send(self, message: object) -> None:
    self._secret = secrets.token_hex(8)
    self._unsent = pickle.dumps((self._secret, message))
    self._write()

  def _write(self) -> None:
    """Writes what the pipe can take: a process may have stopped reading."""
    try:
      while self._unsent and (count := self._requests.write(self._unsent)):
        self._unsent = self._unsent[count:]
    except BrokenPipeError:  # it died; reading will say so
      self._unsent = b""


def _pipe(mode: str) -> tuple[int, io.FileIO]:
  """Returns the end of a pipe for a process, and our own, which never waits."""
  ends = os.pipe()
  theirs, ours = ends if mode == "wb" else ends[::-1]
  os.set_blocking(ours, False)
  return theirs, io.FileIO(ours, mode)


def _parsed(
  line: bytes, secret: str, parts: int
) -> tuple[_Answer, bool] | None:
  """Returns an answer, and whether the process ends; None: it is neither."""
  marked, _, body = line.partition(b" ")
  if not secret or marked != secret.encode():
    return None
  try:
    answer, ends = json.loads(body)
    if not isinstance(answer, str):
      answer = [None if value is None else float(value) for value in answer]
      known = [value for value in answer if value is not None]
      if len(answer) != parts or not known:
        return None
      if not all(abs(value) < verifiers.LARGEST for value in known):
        return None
  except (ArithmeticError, RecursionError, TypeError, ValueError):
    return None
  return answer, bool(ends)
