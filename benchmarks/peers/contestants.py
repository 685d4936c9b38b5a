"""The processes that benchmarks/rollout.py runs, and what they run on."""

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

from bilevel_jax import errors

ROOT = pathlib.Path(__file__).parents[2]
OURS = "benchmarks.peers.bilevel_jax_rollout"
TUNIX = "benchmarks.peers.tunix_rollout"
TRANSFORMERS = "benchmarks.peers.transformers_rollout"

# What XLA may put into CUDA graphs; none without any.
_COMMAND_BUFFERS = {
  "on": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,WHILE,CONDITIONAL",
  "off": "",
}


class Plan(NamedTuple):
  """How a contestant is started."""

  label: str
  python: str
  module: str
  options: dict[str, Any]
  environment: dict[str, str]


def plans(options: argparse.Namespace) -> list[Plan]:
  """Returns the contestants that the command line asks for, ours first."""
  made = []
  for layers, buffers in itertools.product(
    options.layers, options.command_buffers
  ):
    words = [layers] if len(options.layers) > 1 else []
    environment = {}
    if buffers is not None:
      words.append(f"buffers {buffers}")
      flags = os.environ.get("XLA_FLAGS", "")
      flag = f"--xla_gpu_enable_command_buffer={_COMMAND_BUFFERS[buffers]}"
      environment["XLA_FLAGS"] = f"{flags} {flag}".strip()
    label = ", ".join(["ours", *words])
    own = Plan(label, sys.executable, OURS, {"layers": layers}, environment)
    made.append(own)
  if options.peer is not None:
    made.append(Plan("tunix", options.peer, TUNIX, {}, {}))
  if options.compare is not None:
    made.append(Plan("transformers", sys.executable, TRANSFORMERS, {}, {}))
  return made


class Contestant:
  """A process that answers JSON lines (see lines.py) until it is left.

  Attributes:
    about: its name, its device, and how many parameters its model has.
  """

  def __init__(self, plan: Plan, set_up: dict[str, Any]):
    self._label = plan.label
    self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 -- __exit__ closes it
    try:
      self._process = subprocess.Popen(
        [plan.python, "-m", plan.module],
        cwd=ROOT,
        # Several share one device: none may take all of its memory.
        env={
          **os.environ,
          "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
          **plan.environment,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._said,
        text=True,
      )
    except OSError as error:
      self._said.close()
      raise errors.ConfigError(
        f"{plan.label} must have a Python interpreter, got {plan.python}: "
        f"{error.strerror}"
      ) from None
    self.about = self.run({**set_up, "options": plan.options})

  def __str__(self) -> str:
    return self._label

  def __enter__(self) -> "Contestant":
    return self

  def __exit__(self, *_: object) -> None:
    self._process.kill()
    self._process.wait()
    for pipe in (self._process.stdin, self._process.stdout, self._said):
      pipe.close()  # pyright: ignore[reportOptionalMemberAccess] -- pipes

  def run(self, request: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer to a line.

    Raises:
      ConfigError: the process has ended instead.
    """
    try:
      self._process.stdin.write(json.dumps(request) + "\n")
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # it has ended, and its last words are below
    answer = self._process.stdout.readline()
    if answer:
      return json.loads(answer)
    self._process.wait()
    self._said.seek(0)
    lines = [line for line in self._said.read().splitlines() if line.strip()]
    self.__exit__()
    raise errors.ConfigError(
      f"{self._label} ended with code {self._process.returncode}: "
      f"{lines[-1].strip() if lines else 'it said nothing'}"
    )


def count(text: str) -> int:
  """Returns a number of at least 1, for argparse."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
  return int(text)


def counts(text: str) -> list[int]:
  """Returns numbers of at least 1 from a comma list, for argparse."""
  return [count(word) for word in text.split(",")]


def choices(*names: str) -> Callable[[str], list[str]]:
  """Returns what reads a comma list of some of the names, for argparse."""

  def read(text: str) -> list[str]:
    words = text.split(",")
    for word in words:
      if word not in names:
        raise argparse.ArgumentTypeError(
          f"must be of {', '.join(names)}, got {word!r}"
        )
    return words

  return read
