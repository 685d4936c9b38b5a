"""Scoring in processes that can be killed, a deadline for each completion."""

import collections
import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from typing import NamedTuple

import numpy as np

from bilevel_jax import errors, types
from bilevel_jax.rewards import verifiers

_WORKER = "bilevel_jax.rewards.worker"
_CHUNK = 16  # items a process is given at once, at most
_START_LIMIT_S = 300.0  # for the imports of a user's verifier
_FAILURES_KEPT = 20
_FAILED_STARTS = 3  # in a row, after which scoring is given up

# A score, or why there is none.
_Answer = tuple[float, bool] | str


class Failure(NamedTuple):
  """A completion that could not be scored."""

  completion: str
  reason: str


class Scorer:
  """Scores completions; a context manager that leaves no process behind.

  Verifiers that cannot hang are called here; if any other is among the parts,
  every item goes to a scoring process. Such a process answers one item after
  the other; when an answer is late, or the process dies, that one completion
  counts as unscorable, and the process is replaced.
  """

  def __init__(
    self,
    parts: Mapping[str, float],
    *,
    pattern: str | None = None,
    deadline_s: float = 5.0,
    workers: int = 2,
  ):
    """Builds the verifiers and starts the processes, without waiting for them.

    Args:
      parts: verifier -> weight, see `verifiers.build`.
      deadline_s: seconds that scoring one completion may take.

    Raises:
      ConfigError: a verifier that cannot be built, or a deadline that is not
        a finite number above 0.
    """
    if not 0 < deadline_s < math.inf:
      raise errors.ConfigError(
        "reward.deadline_s must be a finite number of seconds above 0, got "
        f"{deadline_s}"
      )
    self._parts = verifiers.build(parts, pattern)
    self._setup = (dict(parts), pattern, deadline_s, types.Question._fields)
    self._lock = threading.Lock()
    self._failed_starts = 0
    self.replaced = 0  # processes that died or were killed, so far
    self._failures: list[Failure] = []
    self._in_process = set(parts) <= set(verifiers.CANNOT_HANG)
    count = 0 if self._in_process else workers
    self._workers = [_Worker(self._setup) for _ in range(count)]

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
      answers = [verifiers.score(self._parts, *pair) for pair in pairs]
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
    found = [(0.0, False) if isinstance(a, str) else a for a in answers]
    return types.Scores(
      rewards=np.array([reward for reward, _ in found], np.float32),
      scored=np.array([not isinstance(a, str) for a in answers], bool),
      correct=np.array([correct for _, correct in found], bool),
    )

  def _score_in_workers(
    self, pairs: list[tuple[str, types.Question]]
  ) -> list[_Answer]:
    if not self._workers:
      raise RuntimeError("the scorer is closed")
    answers: list[_Answer] = [""] * len(pairs)
    waiting = collections.deque(range(len(pairs)))
    # Small enough that no process idles at the end while another is busy.
    chunk = max(1, min(_CHUNK, len(pairs) // (4 * len(self._workers))))
    while True:
      for worker in self._workers:
        if worker.ready and not worker.pending and waiting:
          items = [waiting.popleft() for _ in range(min(chunk, len(waiting)))]
          if not worker.give(items, [pairs[i] for i in items]):
            waiting.extendleft(reversed(items))
      if not waiting and not any(worker.pending for worker in self._workers):
        return answers
      due = min(worker.due for worker in self._workers)
      readable = connection.wait(
        [worker.pipe for worker in self._workers],
        None if math.isinf(due) else max(0.0, due - time.monotonic()),
      )
      for index, worker in enumerate(self._workers):
        alive = (
          worker.receive(answers)
          if worker.pipe in readable
          else time.monotonic() < worker.due or worker.pipe.poll()
        )
        if not alive:
          # The item that was being scored has no score; those behind it were
          # not started.
          for item in worker.pending[:1]:
            answers[item] = worker.why_unanswered()
          waiting.extendleft(reversed(worker.pending[1:]))
          self._workers[index] = self._replace(worker)
        elif worker.ready:
          self._failed_starts = 0

  def _replace(self, worker: "_Worker") -> "_Worker":
    code = worker.end()
    self.replaced += 1
    if not worker.ready:
      self._failed_starts += 1
      if worker.complaint or self._failed_starts == _FAILED_STARTS:
        reason = worker.complaint or f"the last one's exit code is {code}"
        raise RuntimeError(f"scoring processes cannot start: {reason}")
    return _Worker(self._setup)


class _Worker:
  """A scoring process, and what it was given and has not answered yet."""

  def __init__(self, setup: tuple):
    self.pipe, remote = connection.Pipe()
    # Not multiprocessing.Process: fork is not safe beside JAX's threads, and
    # spawn runs the parent's `__main__` again. -P: as in sys.path, no less
    # and no more.
    self._process = subprocess.Popen(
      [sys.executable, "-P", "-m", _WORKER, str(remote.fileno())],
      stdin=subprocess.DEVNULL,
      pass_fds=[remote.fileno()],
      start_new_session=True,  # what a verifier starts ends with it
      env=os.environ
      | {
        "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
        "JAX_PLATFORMS": "cpu",  # a user's verifier must not take the GPU
      },
    )
    remote.close()
    self.ready = False
    self.complaint: str | None = None
    self.pending: list[int] = []
    self.due = time.monotonic() + _START_LIMIT_S
    self._deadline_s = setup[2]
    self._send(setup)

  @property
  def process_id(self) -> int:
    return self._process.pid

  def give(self, items: list[int], pairs: list) -> bool:
    """Returns whether the process took these items."""
    message = [(completion, tuple(question)) for completion, question in pairs]
    if not self._send(message):
      return False
    self.pending = items
    self.due = time.monotonic() + self._deadline_s
    return True

  def receive(self, answers: list[_Answer]) -> bool:
    """Returns whether the process lives; writes its answer, if it gave one."""
    try:
      message = self.pipe.recv()
    except (EOFError, OSError):
      return False
    if self.ready:
      answers[self.pending.pop(0)] = message
    else:
      self.ready = message == "ready"
      self.complaint = None if self.ready else message
    self.due = time.monotonic() + self._deadline_s if self.pending else math.inf
    return self.complaint is None

  def why_unanswered(self) -> str:
    """Returns why there is no score of what was being scored."""
    if time.monotonic() >= self.due:
      return f"scoring took longer than {self._deadline_s:g} s"
    return "the scoring process ended"

  def end(self) -> int:
    """Returns the exit code, after killing the process."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    self.pipe.close()
    return self._process.wait()

  def _send(self, message: object) -> bool:
    try:
      self.pipe.send(message)
    except OSError:  # it died; the next `receive` will say so
      return False
    return True
