"""A fork server: one clean interpreter, from which each program is forked.

It takes jobs on a socket, each a byte with the descriptors of the program: its
channel, and what it reads and writes. It answers each with how the program
ended, once nothing of it is left. The program's own process reads the job from
its channel, so that nothing of an earlier one is in its memory.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import sysconfig
from collections.abc import Callable
from typing import Any, NoReturn

from bilevel_jax.rewards.sandbox import filters, namespaces, programs, values

_IMPORTED = (
  *(
    "bisect",
    "cmath",
    "collections",
    "copy",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
  ),
  *("fractions", "functools", "hashlib", "heapq", "io", "itertools", "json"),
  *("numbers", "operator", "queue", "random", "re", "statistics", "string"),
  *("textwrap", "time", "traceback", "typing", "ast", "inspect"),
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_FILES, _THREADS = 64, 64
_USERS = 61184, 4096  # systemd's range of users that exist for a while
_ANSWER = struct.Struct("=i")
_KILL, _JOB = b"k", b"j"
_DEATH_SIGNAL, _DUMPABLE = 1, 4  # of prctl


def main(control: socket.socket, settings: dict[str, Any]) -> None:
  """Serves jobs until the other side of the socket closes.

  Args:
    control: a sequenced-packet socket; the first packet is JSON: `isolation`
      that is in force and `refused`, why others are not; or `error`.
    settings: isolation, a list of those to be tried; memory, file (bytes);
      cpu_s; packages; paths, where those are found.
  """
  filters.LIBC.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
  try:
    _import(settings)
    server = _Server(control, settings)
  except Exception as error:
    control.send(json.dumps({"error": f"{error}"}).encode())
    return
  server.serve()


def _in_child(work: Callable[[], None]) -> None:
  """Does something in a child alone.

  Raises:
    OSError: it failed there.
  """
  ours, theirs = os.pipe()
  child = os.fork()
  if child == 0:
    said = ""
    try:
      work()
    except BaseException as error:
      said = getattr(error, "strerror", None) or str(error)
      said = said or type(error).__name__
    os.write(theirs, said.encode())
    os._exit(0)
  os.close(theirs)
  os.waitpid(child, 0)
  with open(ours, "rb") as said:
    if found := said.read():
      raise OSError(found.decode())


def _import(settings: dict[str, Any]) -> None:
  for name in _IMPORTED:
    importlib.import_module(name)
  sys.path += settings["paths"]
  for name in settings["packages"]:
    importlib.import_module(name)


class _Server:
  def __init__(self, control: socket.socket, settings: dict[str, Any]):
    self._control, self._settings = control, settings
    self._user = None
    if os.geteuid() == 0:
      start, count = _USERS
      self._user = start + os.getpid() % count
    self._rules: int | None = None  # Landlock's
    paths = sysconfig.get_paths()
    readable = {paths["stdlib"], paths["platstdlib"], *_LIBRARIES}
    self._readable = readable | set(settings["paths"])
    refused = {}
    for isolation in settings["isolation"]:
      try:
        self._isolate(isolation)
      except OSError as error:
        refused[isolation] = error.strerror or str(error)
        continue
      self._isolation = isolation
      break
    else:
      said = "; ".join(f"{k}: {v}" for k, v in refused.items())
      raise OSError(said or "nothing was tried")
    filters.LIBC.prctl(_DUMPABLE, 0, 0, 0, 0)
    said = {"isolation": self._isolation, "refused": refused}
    control.send(json.dumps(said | {"user": self._user}).encode())

  def _isolate(self, isolation: str) -> None:
    if isolation == "none":
      return
    if not filters.system_calls_known():
      raise OSError("the numbers of this machine's system calls are not known")
    _in_child(filters.refuse_system_calls)
    if isolation == "landlock":
      self._rules = filters.rules_of_files(self._readable, _DEVICES)
      return
    # What is refused half way must leave this process as it is.
    _in_child(self._enter_namespaces)
    self._enter_namespaces()

  def _enter_namespaces(self) -> None:
    namespaces.unshare()
    child = os.fork()
    if child:
      self._control.close()
      os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    filters.LIBC.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    namespaces.see_only(self._readable, _DEVICES)
    namespaces.empty_directory(self._settings["file"])

  def serve(self) -> None:
    gc.collect()
    gc.freeze()  # a collection in a program copies no pages of these
    while True:
      packet, descriptors, _, _ = socket.recv_fds(self._control, 1, 3)
      if not packet:
        return
      if packet == _KILL:  # of a program that has just ended
        continue
      self._empty_directory()
      child = os.fork()
      if child == 0:
        self._work(*descriptors)
      for descriptor in descriptors:
        os.close(descriptor)
      self._control.send(_ANSWER.pack(self._wait(child)))

  def _empty_directory(self) -> None:
    if self._isolation == "namespaces" and os.listdir(namespaces.DIRECTORY):
      namespaces.empty_directory(self._settings["file"])

  def _wait(self, child: int) -> int:
    """Returns the exit code, -n for signal n, when nothing is left."""
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(self._control, select.POLLIN)
    ready = {descriptor for descriptor, _ in poll.poll()}
    if ended not in ready:  # to be killed, or nobody is there any more
      with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.close(ended)
    status = os.waitpid(child, 0)[1]
    if self._isolation == "namespaces":
      with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    else:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
      while os.waitpid(-1, 0):
        pass
    return os.waitstatus_to_exitcode(status)

  def _work(self, *descriptors: int) -> NoReturn:
    """Does a job in the process that was forked for it."""
    code = 1
    try:
      os.setsid()
      channel = self._arrange(*descriptors)
      job = values.receive(channel)
      self._limit(job["cpu_s"])
      match job["kind"]:
        case "run":
          channel.close()
          code = programs.run_script(job)
        case "serve":
          code = programs.serve(job, channel)
        case "check":
          code = programs.check(job, channel)
    except BaseException:  # such as the end of the channel
      code = 1
    finally:
      os._exit(code)

  def _arrange(self, channel: int, stdin: int, stdout: int) -> socket.socket:
    """Has three standard streams and the channel, and no other descriptor."""
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    os.dup2(os.open("/dev/null", os.O_RDWR), 2)
    self._control.detach()
    for descriptor in range(3, _FILES):
      if descriptor not in (channel, self._rules):
        with contextlib.suppress(OSError):
          os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
      stream = open(  # noqa: SIM115 -- for as long as the process is there
        number, "w" if number else "r", encoding="utf-8", errors="replace"
      )
      setattr(sys, name, stream)
      setattr(sys, f"__{name}__", stream)
    return socket.socket(fileno=channel)

  def _limit(self, cpu_s: int) -> None:
    settings = self._settings
    for name, soft, hard in (
      ("CPU", cpu_s, cpu_s + 1),
      ("AS", settings["memory"], settings["memory"]),
      ("FSIZE", settings["file"], settings["file"]),
      ("NPROC", _THREADS, _THREADS),
      ("NOFILE", _FILES, _FILES),
      ("CORE", 0, 0),
      ("MEMLOCK", 0, 0),
      ("MSGQUEUE", 0, 0),
    ):
      kind = getattr(resource, f"RLIMIT_{name}")
      most = resource.getrlimit(kind)[1]
      if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
      resource.setrlimit(kind, (soft, hard))
    inside = self._isolation == "namespaces"
    os.chdir(namespaces.DIRECTORY if inside else "/")
    namespaces.drop_rights(self._user, reads_all=self._rules is not None)
    filters.LIBC.prctl(_DUMPABLE, 0, 0, 0, 0)
    if self._rules is not None:
      filters.keep_to_files(self._rules)
      os.close(self._rules)
    if filters.system_calls_known():
      filters.refuse_system_calls()
