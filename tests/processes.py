"""Pairs of processes that compute together, over loopback."""

import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def run_pair(module: str, file: pathlib.Path) -> None:
  """Runs `python -m module PROCESS PORT FILE` twice, at once, to the end."""
  command, port = [sys.executable, "-m", module], free_port()
  pair = [
    subprocess.Popen([*command, str(i), str(port), str(file)], cwd=ROOT)
    for i in range(2)
  ]
  try:
    assert [process.wait(timeout=180) for process in pair] == [0, 0]
  finally:
    for process in pair:
      process.kill()
