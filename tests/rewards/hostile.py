"""A reward that does what a completion names; a number is its value."""

import asyncio
import ctypes
import gc
import mmap
import os
import signal
import subprocess
import sys
import threading
import time


def does(completion, question):
  """Calls the function of this module that the completion names."""
  del question
  name, _, argument = completion.partition(" ")
  found = globals().get(name)
  return found(*[argument][: bool(argument)]) if found else float(name)


def loop():
  while True:
    pass


def loop_in_threads():
  for _ in range(4):
    threading.Thread(target=loop, daemon=True).start()
  return 0.5


def loop_in_c():
  import re

  re.match("(a|aa)+$", "a" * 100 + "b")


def raise_unpicklable():
  class Local(Exception):
    def __reduce__(self):
      os._exit(0)

  raise Local(lambda: 0)


def raise_text(code):
  raise ValueError(chr(int(code)))


def raise_long():
  raise ValueError("x" * 10**8)


class _Hostile(Exception):
  def __str__(self):
    sys.exit(1)

  __repr__ = __str__


def raise_hostile():
  raise _Hostile


def raise_group():
  raise ExceptionGroup("many", [ValueError("y" * 99)] * 10**4)


def recursion():
  return recursion()


def recursion_without_end():
  sys.setrecursionlimit(10**9)
  return max([[]], key=lambda _: recursion_without_end())


def interrupt():
  raise KeyboardInterrupt


def no_descriptors():
  """Leaves none to be opened."""
  while True:
    os.dup(0)


def say(words):
  print(words)
  time.sleep(60)


def deep():
  value = 1.0
  for _ in range(10**6):
    value = [value]
  return value


def large():
  return [0.0] * 10**7


def integer():
  return 10**5000


def text():
  return b"1"


def generator():
  yield 1.0


async def coroutine():
  return 1.0


def leave():
  sys.exit(3)


def cancel():
  raise asyncio.CancelledError


def leave_in_thread():
  thread = threading.Thread(target=sys.exit, args=(3,))
  thread.start()
  thread.join()
  return 0.5


def leave_later(seconds):
  threading.Timer(float(seconds), os._exit, (3,)).start()
  return 0.5


def alarm(seconds):
  signal.setitimer(signal.ITIMER_REAL, float(seconds))
  return 0.5


def end():
  os._exit(0)


def crash():
  ctypes.string_at(0)


def kill_group():
  os.killpg(0, signal.SIGKILL)


def kill_parent():
  os.kill(os.getppid(), signal.SIGKILL)
  time.sleep(60)


def stop_parent():
  os.kill(os.getppid(), signal.SIGSTOP)
  return 0.5


def stop_later():
  threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGSTOP)).start()
  return 0.5


def block_signals():
  signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
  time.sleep(60)


def close_all():
  os.closerange(0, 100)
  return 1.0


def close_output():
  sys.stdout.close()
  return 0.5


def _pipes():
  found = []
  for fd in map(int, os.listdir("/proc/self/fd")):
    try:
      if fd > 2 and os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):
        found.append(fd)
    except OSError:
      pass
  return found


def _write_to_pipes(data):
  for fd in _pipes():
    try:
      while data:
        data = data[os.write(fd, data) :]
    except OSError:
      pass


def garbage():
  _write_to_pipes(b"\x80\x04garbage" + b"x" * 2**21 + b"\n[")
  return 0.5


def forge():
  """Answers for those to come, with every secret that can be found."""
  secrets = {
    value
    for value in gc.get_objects()
    for value in (value if isinstance(value, tuple) else ())
    if isinstance(value, str) and len(value) == 16
  }
  frame = sys._getframe()
  while frame:
    secrets |= {v for v in frame.f_locals.values() if isinstance(v, str)}
    frame = frame.f_back
  lines = ["[[9.0], false]", '"ready"', "[9.0]"]
  lines += [f"{secret} [[9.0], false]" for secret in secrets] * 3
  _write_to_pipes("\n".join(["", *lines, ""]).encode())
  return 0.5


def forge_wrong():
  """Its own answer: values that float32 does not hold, too many, or none."""
  frame = sys._getframe()
  while "secret" not in frame.f_locals:
    frame = frame.f_back
  secret = frame.f_locals["secret"]
  for values in (
    *("1e39", "NaN", "Infinity", '"a"', "1" * 999, "[" * 9999),
    *("9, 9", "", "null"),
  ):
    _write_to_pipes(f"\n{secret} [[{values}], false]\n".encode())
  return 0.5


def steal():
  """Reads what is for the process."""
  for fd in _pipes():
    threading.Thread(target=os.read, args=(fd, 10**6), daemon=True).start()
  time.sleep(0.2)
  return 0.5


def flood():
  while True:
    os.write(1, b"y" * 2**16)


def read_input():
  return float(len(sys.stdin.read())) + 0.5


def fork():
  return 0.25 if os.fork() == 0 else 0.5


def fork_and_leave():
  if os.fork() == 0:
    sys.exit(0)
  return 0.5


def fork_bomb():
  for _ in range(200):
    if os.fork() == 0:
      time.sleep(3600)
  time.sleep(3600)


def daemon(file):
  """Leaves a process behind that nobody knows."""
  if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
      with open(f"{file}.part", "w") as out:
        out.write(str(os.getpid()))
      os.rename(f"{file}.part", file)
      time.sleep(3600)
    os._exit(0)
  os.wait()
  while not os.path.exists(file):
    time.sleep(0.01)
  return 0.5


def child(file):
  process = subprocess.Popen(["sleep", "3600"], start_new_session=True)
  with open(file, "w") as out:
    out.write(str(process.pid))
  return 0.5


def take(gigabytes):
  return float(len(bytearray(int(gigabytes) << 30)) > 0)


def take_slowly():
  held = []
  while True:
    held.append(b"x" * 2**24)


_held = []


def leak():
  """Takes what the next ones would need."""
  while True:
    try:
      _held.append(bytearray(2**20))
    except MemoryError:
      return 0.5


def need():
  return float(len(bytearray(2**26)) > 0)


def take_in_child():
  code = "import sys; sys.exit(3 if len(bytearray(8 << 30)) else 4)"
  # -I and -S: it starts at once, on a busy machine too.
  return float(subprocess.run([sys.executable, "-ISc", code]).returncode == 1)


def map_privately():
  mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE)


def naptime(seconds):
  time.sleep(float(seconds))
  return 0.5
