"""Fork servers: what is in force, limits, and what becomes of processes."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from bilevel_jax import config, errors, types
from bilevel_jax.rewards import pool
from bilevel_jax.rewards.sandbox import fork_server, grading, settings
from tests import processes
from tests.rewards.sandbox import campaign

PATIENT = {"deadline_s": 60.0, "test_s": 60.0}


@pytest.fixture(scope="module")
def server():
  """A server of the isolation that is to be had here."""
  found = fork_server.ForkServer(settings.Sandbox(output="1MB"))
  yield found
  found.close()


def _run(server, program, stdin=b"", seconds=60.0, cpu_s=60):
  job = {"kind": "run", "program": program, "cpu_s": cpu_s}
  with server.start(job, stdin) as run:
    code = run.wait(time.monotonic() + seconds)
    return code, run.output()


def test_a_program_reads_and_writes_as_a_script_does(server):
  assert _run(server, "print(input()[::-1])", b"abc\n") == (0, b"cba\n")
  program = "import sys\nfor line in sys.stdin.buffer: print(len(line))"
  assert _run(server, program, b"ab\nc") == (0, b"3\n1\n")
  assert _run(server, "import sys\nprint(1)\nsys.exit(3)") == (3, b"1\n")
  assert _run(server, "raise ValueError") == (1, b"")
  assert _run(server, "import sys\nsys.exit('no')") == (1, b"")
  assert _run(server, "print(__name__, __import__('sys').argv)") == (
    *(0, b"__main__ ['program.py']\n"),
  )


def test_threads_and_exit_functions_are_waited_for(server):
  program = """
    import atexit, threading, time
    atexit.register(print, "last")
    def late(): time.sleep(0.05); print("late")
    threading.Thread(target=late).start()
    """
  assert _run(server, textwrap.dedent(program)) == (0, b"late\nlast\n")


def test_a_program_sees_the_same_as_the_last_time(server):
  program = (
    "import random\nprint(random.random(), {'a', 'b', 'c', 'd'}, hash('x'))"
  )
  one = _run(server, program)
  other = fork_server.ForkServer(settings.Sandbox())
  assert one == _run(server, program) == _run(other, program)
  other.close()


def _memory_has(process_id, text):
  """Returns whether a process has a text in memory that it can write to."""
  maps = pathlib.Path(f"/proc/{process_id}/maps").read_text().splitlines()
  with open(f"/proc/{process_id}/mem", "rb") as memory:
    for line in maps:
      place, rights, *_ = line.split()
      if rights.startswith("rw"):
        start, end = (int(number, 16) for number in place.split("-"))
        memory.seek(start)
        if text in memory.read(end - start):
          return True
  return False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read a server")
def test_a_server_knows_nothing_of_the_programs_that_it_starts(server):
  secret = os.urandom(8).hex().encode()
  job = {"kind": "run", "program": f"print('{secret.decode()}')", "cpu_s": 60}
  with server.start(job, secret) as run:
    assert run.wait(time.monotonic() + 60) == 0
    assert run.output() == secret + b"\n"
  found = campaign.descendants(os.getpid())
  assert len(found) >= 1
  assert not [n for n in found if _memory_has(n, secret)]
  assert _memory_has(os.getpid(), secret)


def test_the_clock_ends_what_sleeps_and_the_cpu_limit_what_computes(server):
  start = time.monotonic()
  assert _run(server, "import time\ntime.sleep(60)", seconds=0.2)[0] is None
  assert time.monotonic() - start < 5
  code, _ = _run(server, "while True: pass", cpu_s=1)
  assert code == -signal.SIGXCPU


def test_memory_and_output_are_bounded(server):
  code, _ = _run(server, "x = bytearray(2 * 10**9)")
  assert code == 1
  code, output = _run(server, "print('x' * 10**7)")
  assert (code, len(output)) == (1, 10**6)


def test_a_thousand_programs_leave_nothing(server):
  def held():
    inner = campaign.descendants(os.getpid())
    pages = [
      int(pathlib.Path(f"/proc/{n}/statm").read_text().split()[1])
      for n in inner
    ]
    return len(os.listdir("/proc/self/fd")), len(inner), sum(pages)

  for _ in range(20):
    _run(server, "print(1)")
  descriptors, count, pages = held()
  for n in range(1000):
    text = "open('x', 'w').write('a' * 1000)\n" if not n % 50 else ""
    if server.isolation != "namespaces":
      text = ""
    assert _run(server, f"{text}print({n})") == (0, b"%d\n" % n)
  assert held()[:2] == (descriptors, count)
  assert held()[2] < pages + 200


def test_a_server_that_is_killed_costs_nothing():
  code = grading.Code(settings.Sandbox(**PATIENT))
  question = types.Question("", "", "", None, {"tests": ["assert f(2) == 4"]})
  program = "```\ndef f(x): return x * x\n```"
  assert code(program, question) == 1.0
  for server in code._servers.values():
    server._process.kill()
    server._process.wait()
  assert code(program, question) == 1.0
  code.close()


def test_servers_end_with_the_process_that_started_them():
  script = """
    import os, time
    from bilevel_jax.rewards.sandbox import fork_server, settings
    server = fork_server.ForkServer(settings.Sandbox())
    run = server.start(
      {"kind": "run", "program": "while True: pass", "cpu_s": 100}
    )
    time.sleep(0.5)
    found = [server._process.pid]
    for n in found:
      found += open(f"/proc/{n}/task/{n}/children").read().split()
    print(*found, flush=True)
    os.kill(os.getpid(), 9)
    """
  said = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script)],
    env=os.environ | {"PYTHONPATH": str(processes.ROOT)},
    stdout=subprocess.PIPE,
    text=True,
    check=False,
    timeout=processes.PATIENCE_S,
  ).stdout
  started = said.split()
  assert len(started) >= 2
  end = time.monotonic() + 30
  while any(map(processes.alive, started)) and time.monotonic() < end:
    time.sleep(0.05)
  assert not any(map(processes.alive, started))


def test_packages_are_there_where_they_are_named():
  program = "import numpy\nprint(numpy.arange(3).sum())"
  with_numpy = fork_server.ForkServer(
    settings.Sandbox(packages=("numpy",), memory="2GB")
  )
  assert _run(with_numpy, program) == (0, b"3\n")
  with_numpy.close()
  with pytest.raises(errors.ConfigError, match="must be installed packages"):
    fork_server.ForkServer(settings.Sandbox(packages=("nowhere",)))


def test_without_numpy_it_cannot_be_imported(server):
  assert _run(server, "import numpy")[0] == 1


def test_what_is_in_force_is_said_and_what_is_not_to_be_had_refused(
  monkeypatch,
):
  said = fork_server.in_force(settings.Sandbox(isolation="none"))
  assert said.startswith("none")
  monkeypatch.setattr(fork_server, "_TRIED", {"auto": []})
  with pytest.raises(errors.ConfigError) as raised:
    fork_server.ForkServer(settings.Sandbox())
  assert str(raised.value) == (
    "sandbox.isolation=auto is not possible here (nothing was tried): programs "
    "run without it only with sandbox.isolation=none"
  )


# As in containers: without them the kernel refuses what a server asks for.
@pytest.mark.skipif(
  os.geteuid() != 0, reason="needs root, to give up its rights"
)
@pytest.mark.parametrize("isolation", ["auto", "namespaces"])
def test_root_of_a_container_without_the_right_to_make_namespaces(isolation):
  script = f"""
    import ctypes
    from bilevel_jax import errors
    from bilevel_jax.rewards.sandbox import fork_server, settings
    libc = ctypes.CDLL(None)
    assert libc.prctl(24, 21, 0, 0, 0) == 0  # CAP_SYS_ADMIN, from exec on
    try:
      print(fork_server.in_force(settings.Sandbox(isolation={isolation!r})))
    except errors.ConfigError as error:
      print(error)
    """
  said = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script)],
    env=os.environ | {"PYTHONPATH": str(processes.ROOT)},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  ).stdout
  refused = "namespaces: unshare: Operation not permitted"
  if isolation == "auto":
    assert said.startswith("landlock, user 6")
    assert f"no {refused}" in said
  else:
    assert said.startswith("sandbox.isolation=namespaces is not possible here")


def test_the_verifier_scores_in_the_pool():
  question = types.Question(
    "", "", "", None, {"tests": {"inputs": ["2"], "outputs": ["4"]}}
  )
  before = campaign.descendants(os.getpid())
  with pool.Scorer(
    {"code": 1.0}, deadline_s=120.0, sandbox=settings.Sandbox(**PATIENT)
  ) as scorer:
    assert scorer.isolation
    texts = [
      "```\nprint(int(input()) ** 2)\n```",
      "```\nprint(5)\n```",
      "",
      "x",
    ]
    scores = scorer.score(texts, [question] * 4)
    assert len(campaign.descendants(os.getpid())) > len(before)
  assert scores.rewards.tolist() == [1, 0, 0, 0]
  assert scores.scored.all()
  assert campaign.descendants(os.getpid()) == before


def test_deadlines_and_sizes_that_do_not_fit_are_refused():
  c = config.default_config()
  c.reward.verifiers = ("code",)
  c.model.preset = "qwen2.5-0.5b"
  c.data.questions.path = "x.jsonl"
  c.sandbox.deadline_s = 5.0
  c.sandbox.test_s = 6.0
  c.sandbox.memory = "1kB"
  c.reward.verifier_names = {"a": "code"}
  with pytest.raises(errors.ConfigError) as raised:
    config.parse(c)
  said = str(raised.value)
  for rule in (
    "sandbox.deadline_s must be below reward.deadline_s 5, got 5",
    "sandbox.test_s must be at most sandbox.deadline_s 5, got 6",
    "sandbox.memory must be a number with one of MB",
    "reward.verifier_names needs reward.verifiers_by",
  ):
    assert rule in said
