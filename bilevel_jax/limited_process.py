"""A process with limits: on its memory, its output, and its children's lives.

Between the caller and the process stands a third: this file, as a script. It
starts the process, passes on what it prints, and ends all that it has started
when it ends, or when the caller lets go of it or dies. On Linux that includes
children that became daemons; only one that first kills the process between
escapes. Nothing here needs another module of the package.
"""

import contextlib
import ctypes
import glob
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

_PRCTL = {"death signal": 1, "subreaper": 36}  # of linux/prctl.h
_PATIENCE_S = 5.0  # for the process between to end everything
_OUTPUT_PER_S = 2**16  # bytes passed on; a flood must fill neither disk nor log


class LimitedProcess:
  """A command that runs within limits, in a session of its own."""

  def __init__(
    self,
    command: Sequence[str],
    *,
    memory: int | None = None,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
  ):
    """Starts it; standard input is empty, all output goes to standard error.

    Interrupts and requests to terminate are ignored: the caller decides.

    Args:
      memory: bytes of private data (RLIMIT_DATA: neither files nor shared
        memory are counted) that it, and each of its children, may have; None:
        no limit. If the machine has no more memory, the kernel ends it first.
      env: its environment; None: that of this process.
    """
    self._process = subprocess.Popen(
      # Isolated: neither the environment nor this directory's modules count.
      [sys.executable, "-I", "-S", __file__, str(memory or 0), *command],
      stdin=subprocess.PIPE,  # a byte, or its end, asks for the end
      bufsize=0,
      pass_fds=pass_fds,
      env=env,
      start_new_session=True,
    )

  @classmethod
  def of_module(
    cls,
    module: str,
    pass_fds: Sequence[int],
    *,
    memory: int | None,
    env: Mapping[str, str],
  ) -> "LimitedProcess":
    """Starts a module as a script that can import what this process can.

    What it prints is not held back, and is seen though the process is killed.

    Args:
      module: its dotted name, from where this process would import it.
      pass_fds: file descriptors that it inherits; their numbers are its
        arguments.
    """
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    return cls(
      [sys.executable, "-uP", "-m", module, *map(str, pass_fds)],
      memory=memory,
      pass_fds=pass_fds,
      env={**os.environ, "PYTHONPATH": path, **env},
    )

  @property
  def process_id(self) -> int:
    """Id of the process between, whose end is the end of all."""
    return self._process.pid

  def end(self) -> int:
    """Returns the command's exit code, 128 + n for signal n; ends it first."""
    if self._process.stdin and not self._process.stdin.closed:
      # A child of this process may hold the pipe open: closing is not enough.
      with contextlib.suppress(BrokenPipeError):
        self._process.stdin.write(b".")
      self._process.stdin.close()
    try:
      code = self._process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:  # it was stopped, or has too many to end
      self._process.kill()
      code = self._process.wait()
    return _exit_code(code)


def _supervise(memory: int, command: Sequence[str]) -> int:
  """Runs the command; returns its exit code when nothing of it is left."""
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  _prctl("subreaper", 1)  # orphans become children of this process
  output, theirs = os.pipe()
  worker = subprocess.Popen(
    command,
    stdin=subprocess.DEVNULL,
    stdout=theirs,
    stderr=theirs,
    close_fds=False,
    start_new_session=True,
    preexec_fn=lambda: _limit(memory),
  )
  os.closerange(3, output)  # what is passed on to the command is not for this
  os.close(theirs)
  passing = threading.Thread(target=_pass_on, args=(output,), daemon=True)
  passing.start()
  threading.Thread(target=_wait_to_end, args=(worker,), daemon=True).start()
  code = _reap(worker.pid)
  with contextlib.suppress(ProcessLookupError):
    os.killpg(worker.pid, signal.SIGKILL)
  while children := _children():
    for child in children:
      os.kill(child, signal.SIGKILL)
    for _ in children:
      os.wait()
  passing.join(1.0)
  return code


def _limit(memory: int) -> None:
  _prctl("death signal", signal.SIGKILL)
  if memory:
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
      memory = min(memory, most)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
  with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as f:
    f.write("1000")


def _prctl(option: str, value: int) -> None:
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PRCTL[option], value, 0, 0, 0)


def _wait_to_end(worker: subprocess.Popen) -> None:
  os.read(0, 1)
  os.kill(worker.pid, signal.SIGKILL)


def _reap(process_id: int) -> int:
  """Returns the exit code of a child; others that end before are forgotten."""
  while True:
    ended, status = os.wait()
    if ended == process_id:
      return _exit_code(os.waitstatus_to_exitcode(status))


def _exit_code(code: int) -> int:
  return code if code >= 0 else 128 - code


def _children() -> list[int]:
  found = []
  for path in glob.glob("/proc/[0-9]*/stat"):
    with contextlib.suppress(OSError), open(path, "rb") as file:
      fields = file.read().rpartition(b")")[2].split()
      if int(fields[1]) == os.getpid():
        found.append(int(path.split("/")[2]))
  return found


def _pass_on(descriptor: int) -> None:
  """Copies output, at most so much of it a second, so that none can block."""
  second, left = 0, 0
  while data := os.read(descriptor, 2**16):
    if int(time.monotonic()) != second:
      second, left = int(time.monotonic()), _OUTPUT_PER_S
    with contextlib.suppress(OSError):
      os.write(2, data[:left])
    left = max(0, left - len(data))


if __name__ == "__main__":
  sys.exit(_supervise(int(sys.argv[1]), sys.argv[2:]))
