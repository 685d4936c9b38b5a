"""Processes that a test starts, pairs that compute together, and limits."""

import contextlib
import pathlib
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE_S = 600  # what takes longer has stopped, however busy the machine


def alive(process_id: int) -> bool:
  """Returns whether a process runs: it is there, and no zombie."""
  try:
    status = pathlib.Path(f"/proc/{process_id}/stat").read_text()
  except FileNotFoundError:
    return False
  return status.rpartition(")")[2].split()[0] != "Z"


@contextlib.contextmanager
def own_port() -> Iterator[int]:
  """Yields a port of loopback that nobody else is given in the block.

  It stays bound: a port that is only found free may be somebody else's when
  it is wanted. JAX's coordinator shares it, as any gRPC server does.
  """
  with socket.socket() as holder:
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("127.0.0.1", 0))
    yield holder.getsockname()[1]


def run_pair(module: str, *files: pathlib.Path) -> None:
  """Runs `python -m module PROCESS PORT FILES` twice, at once, to the end."""
  with own_port() as port, contextlib.ExitStack() as ends:
    pair = []
    for index in range(2):
      arguments = map(str, (index, port, *files))
      process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=ROOT
      )
      pair.append(ends.enter_context(process))
      ends.callback(process.kill)
    assert [process.wait(timeout=PATIENCE_S) for process in pair] == [0, 0]


@contextlib.contextmanager
def files_of_at_most(size: int):
  """A full disk for those who may mount none: its error has another number."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
