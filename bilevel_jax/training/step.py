"""One step of a run: plan, the method's batches, updates, numbers."""

import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from bilevel_jax.rollout import answers, packing
from bilevel_jax.training import host as host_lib
from bilevel_jax.training import run as run_lib
from bilevel_jax.training import throughput
from bilevel_jax.types import Tree


class StepResult(NamedTuple):
  """What a step did."""

  metrics: dict[str, float]
  answers: answers.Answers | None  # None: nothing was sampled


def run_step(run: run_lib.Run, step: int) -> StepResult:
  """Samples, scores, assembles and updates; returns what came of it.

  Args:
    run: its state and its streams move on.
  """
  started = time.perf_counter()
  learner = run.learner
  plan = learner.method.plan(step, _Scalars(run.state.extra))
  host = host_lib.Host(run, step, plan)
  updates = []
  for batch in learner.method.batches(host):
    run.state, measured = learner.programs.update(run.state, batch, run.frozen)
    updates.append(measured)
  updates = jax.device_get(updates)
  update_s = time.perf_counter() - started - host.sampling_s
  logged = {"time/update_s": update_s, **host.logged}
  flops = host.flops()
  if flops is not None:
    run.host["update_flops"] += flops
    logged["training/update_flops"] = flops
    logged["training/update_flops_so_far"] = run.host["update_flops"]
  logged["time/padding_share"] = packing.padding_share(host.made)
  logged |= throughput.phase(
    "update",
    update_s,
    tokens=packing.held(host.made),
    flops=flops,
    devices=run.mesh.devices.flat,
  )
  for name in {name: None for measured in updates for name in measured}:
    values = [measured[name] for measured in updates if name in measured]
    # Skipped updates are counted; all else is a mean over the updates.
    mean_or_sum = np.sum if name == "training/skipped_updates" else np.mean
    logged[name] = float(mean_or_sum(values))
  if run.state.adapter is not None or run.frozen is not None:
    logged["bilevel/adapter_delta_norm"] = float(
      learner.programs.delta_norm(run.state.base, run.state.adapter, run.frozen)
    )
  logged["rollout/tokens_so_far"] = run.host["tokens"]
  logged["time/step_s"] = time.perf_counter() - started
  return StepResult(logged, host.answers)


class _Scalars(Mapping[str, float]):
  """The scalars of a method's own state, each waited for when it is read."""

  def __init__(self, extra: Tree):
    self._extra = extra if isinstance(extra, Mapping) else {}

  def __getitem__(self, name: str) -> float:
    if name not in self:
      raise KeyError(name)
    return float(self._extra[name])

  def __contains__(self, name: object) -> bool:
    return getattr(self._extra.get(name), "shape", None) == ()

  def __iter__(self) -> Iterator[str]:
    return filter(self.__contains__, self._extra)

  def __len__(self) -> int:
    return sum(1 for _ in self)
