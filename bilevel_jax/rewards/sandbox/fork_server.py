"""Fork servers from outside: started, given programs, ended."""

import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import time
from typing import Any

from bilevel_jax import errors, fields
from bilevel_jax.rewards.sandbox import namespaces, values
from bilevel_jax.rewards.sandbox.settings import Sandbox

_CODE = """
import json, socket, sys
sys.path.insert(0, sys.argv[1])
from bilevel_jax.rewards.sandbox import server
del sys.path[0]
server.main(socket.socket(fileno=int(sys.argv[2])), json.loads(sys.argv[3]))
"""
# The order of a set of texts, and with it a reward, is the same every time.
_ENVIRONMENT = {
  "PYTHONHASHSEED": "0",
  "LC_ALL": "C.UTF-8",
  "PATH": "",
  "HOME": namespaces.DIRECTORY,
  "TMPDIR": namespaces.DIRECTORY,
  "OPENBLAS_NUM_THREADS": "1",
  "OMP_NUM_THREADS": "1",
}
_START_LIMIT_S, _END_LIMIT_S = 60.0, 5.0
_STATUS = struct.Struct("=i")
_TRIED = {"auto": ["namespaces", "landlock"]}  # of settings' isolation


class ServerDied(RuntimeError):
  """A fork server is there no more, or does not answer."""


class ForkServer:
  """A process from which programs are forked, one after the other."""

  def __init__(self, settings: Sandbox):
    """Starts it.

    Raises:
      ConfigError: the isolation that is asked for is not to be had, or a
        package is not there.
    """
    self.is_over = False
    how = {
      "isolation": _TRIED.get(settings.isolation, [settings.isolation]),
      "memory": fields.byte_count(settings.memory),
      "file": fields.byte_count(settings.output),
      "packages": settings.packages,
      "paths": sorted({_place(name) for name in settings.packages}),
    }
    self._longest_output = how["file"]
    self._control, theirs = socket.socketpair(
      socket.AF_UNIX, socket.SOCK_SEQPACKET
    )
    root = str(pathlib.Path(__file__).parents[3])
    self._process = subprocess.Popen(
      # No site-packages, none of the environment's paths, nothing of the user.
      [
        *(sys.executable, "-PsSB", "-c", _CODE, root),
        *(str(theirs.fileno()), json.dumps(how)),
      ],
      env=_ENVIRONMENT,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      pass_fds=[theirs.fileno()],
      start_new_session=True,
    )
    theirs.close()
    said = json.loads(self._receive(_START_LIMIT_S))
    if "error" in said:
      self.close()
      raise errors.ConfigError(
        f"sandbox.isolation={settings.isolation} is not possible here "
        f"({said['error']}): programs run without it only with "
        "sandbox.isolation=none"
      )
    self.isolation: str = said["isolation"]
    """What is in force: namespaces, landlock or none."""
    self.user: int | None = said["user"]
    """Id of the user that programs run as, where this process is root."""
    self.refused: dict[str, str] = said["refused"]
    """Why the kernel refused what was tried before."""

  def start(self, job: dict[str, Any], stdin: bytes = b"") -> "Program":
    """Starts a job of `programs`, in a process of its own."""
    return Program(self, job, stdin, self._longest_output)

  def close(self) -> None:
    """Ends the server and its programs."""
    self._control.close()
    self._process.kill()
    self._process.wait()
    self.is_over = True

  def give(self, descriptors: list[int]) -> None:
    """Has the next program start with these descriptors.

    Raises:
      ServerDied: it cannot.
    """
    try:
      socket.send_fds(self._control, [b"j"], descriptors)
    except OSError as error:
      self.close()
      raise ServerDied("the fork server of programs has ended") from error

  def ended(self, due: float) -> int | None:
    """Returns a program's exit code, -n for signal n; None: it was late.

    Args:
      due: time of the monotonic clock at which it is killed.

    Raises:
      ServerDied: nothing is known of it.
    """
    left = max(0.0, due - time.monotonic())
    with contextlib.suppress(TimeoutError):
      return _STATUS.unpack(self._receive(left))[0]
    with contextlib.suppress(OSError):
      self._control.send(b"k")
    try:
      self._receive(_END_LIMIT_S)
    except TimeoutError as error:
      self.close()
      raise ServerDied("the fork server of programs hangs") from error
    return None

  def _receive(self, timeout_s: float) -> bytes:
    # 0 would mean not to wait, which says nothing of time.
    self._control.settimeout(max(timeout_s, 1e-3))
    try:
      packet = self._control.recv(2**16)
    except TimeoutError:
      raise
    except OSError:
      packet = b""
    if not packet:
      self.close()
      raise ServerDied(
        "the fork server of programs ended (exit code "
        f"{self._process.returncode})"
      )
    return packet


class Program:
  """A process that does a job of `programs`."""

  def __init__(
    self, server: ForkServer, job: dict[str, Any], stdin: bytes, longest: int
  ):
    """Starts it; `ForkServer.start` does.

    Args:
      longest: bytes that are read of its output.
    """
    self._server, self._longest = server, longest
    self._channel, theirs = socket.socketpair()
    input_, self._output = (os.memfd_create(n) for n in ("stdin", "stdout"))
    self._is_over = False
    try:
      with open(input_, "wb", closefd=False) as file:
        file.write(stdin)
      os.lseek(input_, 0, os.SEEK_SET)
      server.give([theirs.fileno(), input_, self._output])
    except BaseException:
      self._is_over = True
      self.end()
      raise
    finally:
      theirs.close()
      os.close(input_)
    self.send(json.dumps(job).encode(), time.monotonic() + _START_LIMIT_S)

  def __enter__(self) -> "Program":
    return self

  def __exit__(self, *exception: object) -> None:
    self.end()

  def send(self, body: bytes, due: float) -> bool:
    """Sends a message; returns whether it was taken in time."""
    try:
      self._channel.settimeout(max(due - time.monotonic(), 1e-3))
      self._channel.sendall(values.framed(body))
    except OSError:  # TimeoutError is one
      return False
    return True

  def receive(self, due: float) -> bytes | None:
    """Returns the next message; None: there is none, or not in time."""
    header = self._exactly(4, due)
    if header is None or (count := values.length(header)) > values.LONGEST:
      return None
    return self._exactly(count, due)

  def no_more(self) -> None:
    """Has it read the end of its messages."""
    with contextlib.suppress(OSError):
      self._channel.shutdown(socket.SHUT_WR)

  def wait(self, due: float) -> int | None:
    """Returns its exit code, -n for signal n; None: it was killed when due."""
    self._is_over = True
    return self._server.ended(due)

  def output(self) -> bytes:
    """Returns what it has written to its standard output."""
    return os.pread(self._output, self._longest, 0)

  def end(self) -> None:
    """Ends it, whatever it does."""
    self._channel.close()
    os.close(self._output)
    if not self._is_over:
      self.wait(0.0)

  def _exactly(self, count: int, due: float) -> bytes | None:
    parts = []
    while count:
      try:
        self._channel.settimeout(max(due - time.monotonic(), 1e-3))
        part = self._channel.recv(min(count, 2**20))
      except OSError:
        return None
      if not part or (time.monotonic() > due):
        return None
      parts.append(part)
      count -= len(part)
    return b"".join(parts)


@functools.cache
def in_force(settings: Sandbox) -> str:
  """Returns the isolation that programs run in here, and as whom, in words.

  Raises:
    ConfigError: as `ForkServer`.
  """
  server = ForkServer(settings)
  server.close()
  words = [server.isolation]
  if server.user is not None:
    words.append(f"user {server.user}")
  words += [f"no {name}: {why}" for name, why in server.refused.items()]
  return ", ".join(words)


def _place(package: str) -> str:
  """Returns the directory that a package is imported from."""
  spec = importlib.util.find_spec(package)
  if spec is None or spec.origin is None:
    raise errors.ConfigError(
      f"sandbox.packages must be installed packages, got {package!r}"
    )
  up = 1 if spec.submodule_search_locations is None else 2
  return str(pathlib.Path(spec.origin).parents[up - 1])
