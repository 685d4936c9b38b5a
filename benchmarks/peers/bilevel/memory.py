"""The memory that a call takes, as Linux counts it."""

import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

_Answer = TypeVar("_Answer")
_OWN = pathlib.Path("/proc/self")
# Freed memory goes back at once: each call's own is seen. It costs time.
RETURNED_AT_ONCE = {
  "MALLOC_MMAP_THRESHOLD_": "16384",
  "MALLOC_TRIM_THRESHOLD_": "0",
  "MALLOC_TOP_PAD_": "0",
}


def of(call: Callable[[], _Answer]) -> tuple[_Answer, dict[str, Any]]:
  """Returns a call's answer, and the resident memory that it took.

  `bytes` is the most during the call less what there was before, and
  `process_bytes` the most of the process in it; both None without Linux's
  /proc. See RETURNED_AT_ONCE, which must be in the process's environment.
  """
  try:
    (_OWN / "clear_refs").write_text("5")  # forget the highest so far
    before = _status()["VmRSS"]
  except OSError:
    return call(), {"bytes": None, "process_bytes": None}
  answer = call()
  most = _status()["VmHWM"]
  return answer, {"bytes": max(0, most - before), "process_bytes": most}


def _status():
  lines = (_OWN / "status").read_text().splitlines()
  named = (line.split(":", 1) for line in lines)
  return {
    name: int(value.split()[0]) * 1024
    for name, value in named
    if name in ("VmRSS", "VmHWM")
  }
