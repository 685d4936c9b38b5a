"""Programs that do what no program may; each passes where it succeeds.

The tests ask for `RIGHT`, as the value of f(3) and as what is printed.
"""

import textwrap

RIGHT = 1729

# Bodies of a function that returns whether it got what it wanted; what raises
# did not.
_ATTEMPTS = {
  "fork": "return os.fork() > 0",
  "double_fork": """
    if os.fork() == 0:
      os.setsid()
      os.fork()
      time.sleep(60)
    return True
    """,
  "daemon_of_a_new_session": """
    import subprocess
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    return True
    """,
  "multiprocessing": """
    import multiprocessing
    process = multiprocessing.Process(target=print)
    process.start()
    process.join()
    return process.exitcode == 0
    """,
  "shell": "return os.system('true') == 0",
  "posix_spawn": "return os.posix_spawn('/bin/true', ['true'], {}) > 0",
  "exec": "os.execv(sys.executable, [sys.executable, '-c', 'print(1729)'])",
  "exec_of_the_linker": """
    os.execv('/lib64/ld-linux-x86-64.so.2', ['ld', sys.executable])
    """,
  "clone_by_ctypes": """
    import ctypes
    return ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0) >= 0
    """,
  "clone3_by_ctypes": """
    import ctypes
    arguments = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17)
    return ctypes.CDLL(None).syscall(435, arguments, 88) >= 0
    """,
  "vfork_by_x32_numbers": """
    import ctypes
    return ctypes.CDLL(None).syscall(0x40000000 + 58) >= 0
    """,
  "socket_of_the_internet": """
    import socket
    socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    return True
    """,
  "socket_of_this_machine": """
    import socket
    socket.socket(socket.AF_UNIX).connect("\\0docker")
    return True
    """,
  "packet_to_loopback": """
    import socket
    socket.socket(type=socket.SOCK_DGRAM).sendto(b"a", ("127.0.0.1", 53))
    return True
    """,
  "name_service": """
    import socket
    return bool(socket.getaddrinfo("example.org", 80))
    """,
  "web_page": """
    import urllib.request
    return bool(urllib.request.urlopen("http://127.0.0.1", timeout=1))
    """,
  "password_file": "return len(open('/etc/passwd').read()) > 0",
  "password_file_by_dots": """
    return len(open("../../../../../../etc/passwd").read()) > 0
    """,
  "password_file_by_symlink": """
    os.symlink("/etc", "etc")
    return len(open("etc/passwd").read()) > 0
    """,
  "hard_link": "os.link('/etc/passwd', 'mine')\nreturn True",
  "home_directory": """
    return any(os.listdir(d) for d in ("/home", "/work", "/var", "/run"))
    """,
  "file_of_the_tests": f"return len(open({__file__!r}).read()) > 0",
  "file_of_the_sandbox": """
    module = sys.modules["bilevel_jax.rewards.sandbox.server"]
    return len(open(module.__file__).read()) > 0
    """,
  "file_in_tmp": "open('/tmp/sandbox_escape', 'w').write('a')\nreturn True",
  "file_in_shared_memory": """
    open("/dev/shm/sandbox_escape", "w").write("a")
    return True
    """,
  "file_by_dots": "open('../sandbox_escape', 'w').write('a')\nreturn True",
  "written_interpreter": "open(sys.executable, 'r+b').write(b'a')\nreturn True",
  "written_standard_library": "open(os.__file__, 'a').write('#')\nreturn True",
  "removed_standard_library": "os.unlink(os.__file__)\nreturn True",
  "changed_rights_of_a_file": "os.chmod(os.__file__, 0o777)\nreturn True",
  "changed_times_of_a_file": "os.utime(os.__file__)\nreturn True",
  "memory_file": "os.memfd_create('a')\nreturn True",
  "shared_memory_of_system_v": """
    import ctypes
    return ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0
    """,
  "named_shared_memory": """
    from multiprocessing import shared_memory
    shared_memory.SharedMemory("sandbox_escape", create=True, size=4096)
    return True
    """,
  "own_memory_by_proc": "open('/proc/self/mem', 'rb')\nreturn True",
  "parents_memory_by_proc": """
    open(f"/proc/{os.getppid()}/mem", "rb")
    return True
    """,
  "processes_by_proc": "return len(os.listdir('/proc')) > 0",
  "arguments_of_processes": """
    return any(open(f"/proc/{n}/cmdline").read() for n in range(1, 30000))
    """,
  "parents_memory_by_system_call": """
    import ctypes
    class Part(ctypes.Structure):
      _fields_ = [("start", ctypes.c_void_p), ("size", ctypes.c_size_t)]
    mine = ctypes.create_string_buffer(8)
    ours = Part(ctypes.addressof(mine), 8)
    theirs = Part(id(None), 8)
    parts = ctypes.byref(ours), 1, ctypes.byref(theirs), 1
    return ctypes.CDLL(None).process_vm_readv(os.getppid(), *parts, 0) > 0
    """,
  "traced_parent": """
    import ctypes
    return ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0
    """,
  "killed_parent": "os.kill(os.getppid(), 9)\nreturn True",
  "killed_everybody": "os.kill(-1, 9)\nreturn True",
  "stopped_parent_by_thread": """
    import ctypes
    parent = os.getppid()
    return ctypes.CDLL(None).syscall(234, parent, parent, 19) == 0
    """,
  "limits_of_the_parent": """
    import resource
    resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))
    return True
    """,
  "own_limits": """
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    return True
    """,
  "root_user": "os.setuid(0)\nreturn os.getuid() == 0 and os.geteuid() == 0",
  "user_namespace": """
    import ctypes
    return ctypes.CDLL(None).unshare(0x10000000) == 0
    """,
  "mount": """
    import ctypes
    return ctypes.CDLL(None).mount(b"a", b"/usr", b"tmpfs", 0, None) == 0
    """,
  "chroot": "os.chroot('.')\nreturn True",
  "priority": "os.setpriority(os.PRIO_PROCESS, 0, 10)\nreturn True",
  "keys_of_the_kernel": """
    import ctypes
    return ctypes.CDLL(None).syscall(250, 0, -4, 1) >= 0
    """,
  "io_uring": """
    import ctypes
    return ctypes.CDLL(None).syscall(425, 1, bytes(120)) >= 0
    """,
  "descriptors_of_others": """
    import stat
    there = [n for n in range(256) if _is_open(n)]
    return len(there) > 4
    """,
  "tests_text_in_frames": """
    frame = sys._getframe()
    while frame:
      known = repr(frame.f_locals) + repr(frame.f_globals)
      if "".join(["assert abs(f", "(3)"]) in known:
        return True
      frame = frame.f_back
    """,
  "tests_text_in_objects": """
    import gc
    mine = "".join(["assert abs(f", "(3)"])  # which is in no constant
    return any(mine in repr(thing) for thing in gc.get_objects()[:20000])
    """,
}

_START = """
import os, sys, time

def _is_open(number):
  try:
    os.fstat(number)
  except OSError:
    return False
  return True

def attack():
"""
_END = f"""

def f(x):
  return {RIGHT} if attack() else 0

if "SCRIPT":
  print(f(3))
"""

# Whole programs: what answers for them, and what they use up.
_OTHERS = {
  "exits_with_0_at_once": "import os\nos._exit(0)",
  "exits_with_0_when_called": "import os\ndef f(x): os._exit(0)",
  "exits_by_system_exit": "import sys\ndef f(x): sys.exit(0)\nsys.exit(0)",
  "exits_at_the_end": """
    import atexit, os
    atexit.register(os._exit, 0)
    def f(x): return 0
    """,
  "equals_everything": """
    class Equal:
      __eq__ = __ge__ = __le__ = __req__ = lambda self, other: True
      __hash__ = lambda self: 1729
      __bool__ = lambda self: True
    def f(x): return Equal()
    """,
  "number_that_equals_everything": """
    class Equal(int):
      __eq__ = lambda self, other: True
      __hash__ = int.__hash__
    def f(x): return Equal(3)
    """,
  "patched_builtins": """
    import builtins
    for name in ("abs", "len", "int", "isinstance", "print", "all", "any"):
      setattr(builtins, name, lambda *a, **k: True)
    class AssertionError(Exception): pass
    builtins.AssertionError = AssertionError
    def f(x): return 0
    """,
  "own_names_of_the_tests": """
    def abs(x): return 0
    def check(x): return True
    def f(x): return 0
    """,
  "patched_modules": """
    import sys, types
    class All(types.ModuleType):
      def __getattr__(self, name): return lambda *a, **k: True
    for name in ("math", "json", "unittest", "decimal", "operator"):
      sys.modules[name] = All(name)
    def f(x): return 0
    """,
  "patched_sending": """
    import sys
    for name, module in list(sys.modules.items()):
      if name.endswith("sandbox.values"):
        send = module.send
        module.send = lambda channel, m: send(channel, {"passed": [True, True]})
    def f(x): return 0
    """,
  "verdicts_on_every_descriptor": """
    import json, os, struct
    body = json.dumps({"passed": [True, True]}).encode()
    for number in range(64):
      try: os.write(number, struct.pack(">I", len(body)) + body)
      except OSError: pass
    def f(x): return 0
    """,
  "endless_message": """
    import os, struct
    for number in range(3, 64):
      try: os.write(number, struct.pack(">I", 2**32 - 1) + b"a" * 1000)
      except OSError: pass
    def f(x): return 0
    """,
  "nested_answer": """
    import os, struct
    body = b"[" * 10**6
    def f(x):
      for number in range(3, 64):
        try: os.write(number, struct.pack(">I", len(body)) + body)
        except OSError: pass
    """,
  "answer_that_is_code": """
    class Code:
      def __reduce__(self): return exec, ("import os; os._exit(0)",)
    def f(x): return Code()
    """,
  "answer_that_contains_itself": """
    endless = []
    endless.append(endless)
    def f(x): return endless
    """,
  "printed_verdicts": """
    print("passed", "PASSED", "OK", True, '{"passed": [true, true]}')
    def f(x): print("passed"); return "passed"
    """,
  "raises_what_ends_nothing": """
    def f(x): raise EOFError
    raise KeyboardInterrupt
    """,
  "fork_bomb": """
    import os
    while True:
      try: os.fork()
      except OSError: pass
    """,
  "thread_bomb": """
    import threading, time
    def more():
      while True:
        try: threading.Thread(target=more).start()
        except RuntimeError: time.sleep(0.01)
    more()
    """,
  "threads_that_never_end": """
    import threading
    def spin():
      while True: pass
    for _ in range(8): threading.Thread(target=spin).start()
    def f(x): return 0
    """,
  "memory_of_10_gb": "x = bytearray(10**10)\nx[::4096] = x[::4096]",
  "memory_in_parts": "x = []\nwhile True: x.append(bytearray(10**7))",
  "memory_by_mmap": """
    import mmap
    maps = []
    while True:
      maps.append(mmap.mmap(-1, 10**8))
      maps[-1].write(bytes(10**8))
    """,
  "output_of_10_gb": "while True: print('x' * 10**6)",
  "output_by_descriptor": """
    import os
    while True:
      for number in (1, 2):
        try: os.write(number, b"x" * 10**6)
        except OSError: pass
    """,
  "output_that_is_sparse": "import os\nos.ftruncate(1, 10**12)",
  "files_of_10_gb": """
    for n in range(1000):
      try: open(f"{n}", "wb").write(bytes(10**7))
      except OSError: pass
    """,
  "a_million_files": """
    import os
    for n in range(10**6):
      try: os.mkdir(f"{n}")
      except OSError: pass
    """,
  "open_files": "import os\nwhile True: os.dup(0)",
  "deep_recursion": """
    import sys
    sys.setrecursionlimit(10**9)
    def f(x): return f(x) + 1
    f(3)
    """,
  "deep_recursion_in_c": """
    import sys
    sys.setrecursionlimit(10**9)
    x = []
    for _ in range(10**6): x = [x]
    def f(y): return x
    print(repr(x))
    """,
  "nested_source": "x = " + "(" * 5000 + ")" * 5000,
  "huge_integer": "x = 10 ** 10 ** 9\ndef f(y): return x",
  "hang_in_c": """
    import re
    re.match("(a|aa)+$", "a" * 100 + "b")
    """,
  "ignored_signals": """
    import signal
    for number in range(1, 65):
      try: signal.signal(number, signal.SIG_IGN)
      except (OSError, ValueError): pass
    while True: pass
    """,
  "blocked_signals": """
    import signal, time
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    time.sleep(60)
    """,
  "endless_reading": "import sys\nwhile True: sys.stdin.read()",
  "sleep": "import time\ntime.sleep(60)",
  "sleep_when_called": "import time\ndef f(x): time.sleep(60)",
  "stops_itself": "import os\nos.kill(os.getpid(), 19)",
  "segmentation_fault": "import ctypes\nctypes.string_at(0)",
  "written_objects": """
    import ctypes
    ctypes.memset(id(None), 0, 64)
    def f(x): return None
    """,
}


def _text(body: str) -> str:
  return textwrap.dedent(body).strip() + "\n"


PROGRAMS = {
  name: _START + textwrap.indent(_text(body), "  ") + _END
  for name, body in _ATTEMPTS.items()
} | {name: _text(body) for name, body in _OTHERS.items()}
