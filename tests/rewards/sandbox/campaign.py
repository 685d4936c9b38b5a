"""Runs every hostile program beside good ones; prints what came of it.

  python -m tests.rewards.sandbox.campaign ISOLATION

Needs nothing but the standard library, for an interpreter that a user without
rights can read.
"""

import json
import os
import pathlib
import sys
import threading
import time
import types

from bilevel_jax.rewards.sandbox import fork_server, grading, settings
from tests.rewards.sandbox import hostile_programs

DEADLINE_S = 0.3
_GOOD_S = 60.0  # for good programs, on a machine that is busy
_GOOD = """
import os
empty = os.getcwd() == "/" or not os.listdir(".")  # where there is one
print(1729 if sum(range(58)) + 76 == 1729 and empty else 0)
def f(x): return x ** 6 + 1000
"""
_PLACES = ("/tmp", "/dev/shm", "/var/tmp", "/", ".", "..")


def main(isolation: str) -> None:
  """Prints a JSON object for the tests."""
  hostile = _code(isolation, DEADLINE_S)
  neighbour = _code(isolation, _GOOD_S)
  _passes(neighbour, _GOOD)
  good: list[tuple[float, list[float]]] = []
  is_over = threading.Event()

  def run_good() -> None:
    while not is_over.is_set():
      start = time.monotonic()
      scores = _passes(neighbour, _GOOD)
      good.append((time.monotonic() - start, scores))

  beside = threading.Thread(target=run_good)
  beside.start()
  found = {}
  for name, text in hostile_programs.PROGRAMS.items():
    start = time.monotonic()
    scores = _passes(hostile, text)
    took = time.monotonic() - start
    after = _passes(_patient(hostile), _GOOD)
    found[name] = {"scores": scores, "seconds": took, "after": after}
  is_over.set()
  beside.join()
  server = fork_server.ForkServer(settings.Sandbox(isolation=isolation))
  server.close()
  left = [
    *descendants(os.getpid()),
    *(n for n in _processes() if _user(n) == (server.user or -1)),
  ]
  expected = 4 * (2 if server.isolation == "namespaces" else 1)
  said = {
    "isolation": server.isolation,
    "user": os.getuid(),
    "programs": found,
    "neighbours": [scores for _, scores in good],
    "longest": max(seconds for seconds, _ in good),
    "processes_left": len(left) - expected,
    "files_left": [
      path for path in _PLACES if "sandbox_escape" in os.listdir(path)
    ],
  }
  hostile.close()
  neighbour.close()
  said["processes_left_at_the_end"] = len(descendants(os.getpid()))
  print(json.dumps(said))


def _code(isolation: str, deadline_s: float) -> grading.Code:
  return grading.Code(
    settings.Sandbox(
      isolation=isolation,
      deadline_s=deadline_s,
      test_s=deadline_s,
      cpu_s=60,
      memory="400MB",
    )
  )


def _patient(code: grading.Code) -> grading.Code:
  """The same servers, with time for a good program."""
  patient = _code(code._settings.isolation, _GOOD_S)
  patient._servers = code._servers
  return patient


def _passes(code: grading.Code, program: str) -> list[float]:
  """Scores of a program as a script, and as a function that is called."""
  meta = [
    {"tests": {"inputs": ["3\n"], "outputs": [f"{hostile_programs.RIGHT}"]}},
    {"tests": [f"assert abs(f(3) - {hostile_programs.RIGHT}) < 1e-9"]},
  ]
  script = f"```python\n{program}\n```"
  called = script.replace('if "SCRIPT"', "if False")
  return [
    code(text, types.SimpleNamespace(id="", answer="", meta=tests))
    for text, tests in zip((script, called), meta, strict=True)
  ]


def _processes() -> list[int]:
  return [int(p.name) for p in pathlib.Path("/proc").glob("[0-9]*")]


def _user(process_id: int) -> int | None:
  try:
    return pathlib.Path(f"/proc/{process_id}").stat().st_uid
  except OSError:
    return None


def descendants(process_id: int) -> list[int]:
  """Processes below one, at any depth, that have not ended."""
  parents = {}
  for child in _processes():
    try:
      text = pathlib.Path(f"/proc/{child}/stat").read_text()
    except OSError:
      continue
    fields = text.rpartition(")")[2].split()
    if fields[0] != "Z":
      parents[child] = int(fields[1])
  found = [process_id]
  for parent in found:
    found += [child for child, of in parents.items() if of == parent]
  return found[1:]


if __name__ == "__main__":
  main(sys.argv[1])
