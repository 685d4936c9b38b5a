"""What the contestants on torch share: losses, and what is timed."""

import functools
import os
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import torch

from benchmarks.peers import lines
from benchmarks.peers.bilevel import asked, memory, problems

Data = dict[str, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor, Data], torch.Tensor]
"""(b, w, data) -> scalar."""


def _errors(b, x, y):
  return ((x @ b - y) ** 2).mean() / 2


def _cross_entropies(b, x, y):
  return -(y * torch.log_softmax(x @ b, dim=1)).sum(dim=1)


LOSSES: dict[str, tuple[Loss, Loss]] = {
  "ridge": (
    lambda b, w, data: _errors(b, data["held_x"], data["held_y"]),
    lambda b, w, data: (
      _errors(b, data["x"], data["y"]) + (torch.exp(w) * b**2).sum() / 2
    ),
  ),
  "cleaning": (
    lambda b, w, data: _cross_entropies(
      b, data["held_x"], data["held_y"]
    ).mean(),
    lambda b, w, data: (
      problems.SCALE
      * (
        (torch.sigmoid(w) * _cross_entropies(b, data["x"], data["y"])).mean()
        + problems.DECAY * (b**2).sum() / 2
      )
    ),
  ),
}
"""Problem -> (upper, lower), as jax_side.LOSSES."""


class Session:
  """One problem's b and w, and what moves them.

  Made anew for each request, from the data as they are in the file.
  """

  def __init__(self, request: dict[str, Any], arrays: dict[str, Any]):
    tensor = lambda name: torch.from_numpy(np.array(arrays[name]))
    self.request = request
    self.step = float(arrays["step"])
    self.data = {k: tensor(k) for k in ("x", "y", "held_x", "held_y")}
    self.start, self.w = tensor("start"), tensor("w").requires_grad_()
    self.upper, self.lower = LOSSES[request["problem"]]

  def hypergradient(self, w: torch.Tensor) -> torch.Tensor:
    """Returns it after the inner steps, from where b is; b goes on."""
    raise NotImplementedError

  def restart(self) -> None:
    """Puts b back to its start."""
    raise NotImplementedError

  def found(self) -> torch.Tensor:
    """Returns b."""
    raise NotImplementedError

  def outer(self, count: int) -> None:
    """Makes updates of w by Adam."""
    adam = torch.optim.Adam([self.w], lr=self.request["rate"])
    for _ in range(count):
      self.w.grad = self.hypergradient(self.w)
      adam.step()


class Module(torch.nn.Module):
  """A module of one parameter."""

  def __init__(self, value: torch.Tensor):
    super().__init__()
    self.value = torch.nn.Parameter(value.clone())


def serve(name: str, session: type[Session]) -> None:
  """Answers the benchmark's lines.

  Args:
    name: of the distribution.
    session: of its estimators.
  """

  def set_up(request):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    contestant = request["options"]["contestant"]
    return functools.partial(_run, session, contestant), {
      "name": f"{name} {metadata.version(name)}, torch {torch.__version__}",
      "device": "cpu",
      "parameters": 0,
    }

  lines.serve(set_up)


def _run(make, contestant, request):
  with np.load(request["data"]) as file:
    arrays = dict(file)
  request["rate"] = request["rates"].get(contestant)
  began = time.perf_counter()
  if request["first"]:
    _work(make(asked.few(request), arrays))
  preparing = time.perf_counter() - began
  made = make(request, arrays)
  answer, used = memory.of(lambda: _work(made))
  return {**answer, **used, "preparing": preparing, "compilations": 0}


def _work(session):
  return (_ridge if session.request["problem"] == "ridge" else _cleaning)(
    session
  )


def _ridge(session):
  request, count, started = session.request, 0, time.perf_counter()
  while True:
    session.restart()
    gradient = session.hypergradient(session.w)
    count += 1
    seconds = time.perf_counter() - started
    if request["first"] or seconds >= request["seconds"]:
      return {"seconds": seconds / count, "gradient": gradient.tolist()}


def _cleaning(session):
  count, started = session.request["outer_steps"], time.perf_counter()
  session.outer(count)
  return {
    "seconds": (time.perf_counter() - started) / count,
    "b": session.found().tolist(),
    "w": session.w.tolist(),
  }
