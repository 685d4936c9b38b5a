"""What the contestants on JAX share: objectives, and what is timed."""

import functools
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers import lines
from benchmarks.peers.bilevel import asked, memory, problems

Data = dict[str, jax.Array]
Loss = Callable[[jax.Array, jax.Array, Data], jax.Array]
"""(b, w, data) -> scalar."""
Estimate = Callable[[Any, jax.Array, Data], tuple[jax.Array, Any]]
"""(lower, w, data) -> (hypergradient by w, lower after the inner steps)."""
Make = Callable[[dict[str, Any], Loss, Loss, float], Estimate]
"""(request, upper, lower, step of b) -> Estimate."""


def _errors(b, x, y):
  return jnp.mean((x @ b - y) ** 2) / 2


def _cross_entropies(b, x, y):
  return -jnp.sum(y * jax.nn.log_softmax(x @ b), axis=1)


LOSSES: dict[str, tuple[Loss, Loss]] = {
  "ridge": (
    lambda b, w, data: _errors(b, data["held_x"], data["held_y"]),
    lambda b, w, data: (
      _errors(b, data["x"], data["y"]) + jnp.sum(jnp.exp(w) * b**2) / 2
    ),
  ),
  "cleaning": (
    lambda b, w, data: jnp.mean(
      _cross_entropies(b, data["held_x"], data["held_y"])
    ),
    lambda b, w, data: (
      problems.SCALE
      * (
        jnp.mean(jax.nn.sigmoid(w) * _cross_entropies(b, data["x"], data["y"]))
        + problems.DECAY * jnp.sum(b**2) / 2
      )
    ),
  ),
}
"""Problem -> (upper, lower)."""


def through(
  minimise: Callable[[jax.Array, jax.Array, Data], jax.Array], upper: Loss
) -> Estimate:
  """Returns jax.grad of `upper` through a minimiser that has a derivative.

  Args:
    minimise: (b, w, data) -> b after the inner steps.
  """

  def estimate(b, w, data):
    def outcome(w):
      found = minimise(b, w, data)
      return upper(found, w, data), found

    return jax.grad(outcome, has_aux=True)(w)

  return estimate


def serve(
  name: str,
  make: Make,
  *,
  copies: Callable[[str], int] = lambda estimator: 1,
) -> None:
  """Answers the benchmark's lines.

  Args:
    name: of the distribution.
    make: makes an estimator.
    copies: of b that an estimator moves; the first one is what is tested.
  """

  def set_up(request):
    jax.config.update("jax_enable_x64", request["float64"])
    made: dict[str, Any] = {}
    run = functools.partial(
      _run,
      make,
      copies,
      made,
      lines.count_compilations(),
      request["options"]["contestant"],
    )
    return run, {
      "name": f"{name} {metadata.version(name)}, jax {jax.__version__}",
      "device": jax.devices()[0].device_kind,
      "parameters": 0,
    }

  lines.serve(set_up)


def _run(make, copies, made, compilations, contestant, request):
  if request["memory"]:
    few = asked.few(request)
    _run(make, copies, {}, compilations, contestant, few)
  with np.load(request["data"]) as file:
    arrays = dict(file)
  step = float(arrays["step"])
  data = {k: jnp.asarray(arrays[k]) for k in ("x", "y", "held_x", "held_y")}
  start, w = jnp.asarray(arrays["start"]), jnp.asarray(arrays["w"])
  count = copies(request["estimator"])
  lower = start if count == 1 else (start,) * count
  inputs = lower, w, data
  ridge = request["problem"] == "ridge"
  if not ridge:
    rate = jnp.asarray(request["rates"][contestant], w.dtype)
    inputs = lower, w, _ADAM.init(w), rate, data
  key = request["name"], step, w.shape
  began = time.perf_counter()
  if key not in made:
    estimate = make(request, *LOSSES[request["problem"]], step)
    work = estimate if ridge else _outer(estimate)
    made[key] = jax.jit(work).lower(*inputs).compile()
  preparing = time.perf_counter() - began
  work = functools.partial(
    _ridge if ridge else _cleaning, made[key], *inputs, request
  )
  answer, used = memory.of(work)
  return {
    **answer,
    **used,
    "preparing": preparing,
    "compilations": compilations(),
  }


_ADAM = optax.scale_by_adam()


def _outer(estimate):
  def step(lower, w, state, rate, data):
    gradient, lower = estimate(lower, w, data)
    updates, state = _ADAM.update(gradient, state)
    return lower, w - rate * updates, state

  return step


def _ridge(compiled, lower, w, data, request):
  count, started = 0, time.perf_counter()
  while True:
    gradient, _ = jax.block_until_ready(compiled(lower, w, data))
    count += 1
    seconds = time.perf_counter() - started
    if request["first"] or seconds >= request["seconds"]:
      return {
        "seconds": seconds / count,
        "gradient": np.asarray(gradient).tolist(),
      }


def _cleaning(compiled, lower, w, state, rate, data, request):
  started = time.perf_counter()
  for _ in range(request["outer_steps"]):
    lower, w, state = compiled(lower, w, state, rate, data)
  jax.block_until_ready((lower, w))
  seconds = time.perf_counter() - started
  b = lower[0] if isinstance(lower, tuple) else lower
  return {
    "seconds": seconds / request["outer_steps"],
    "b": np.asarray(b).tolist(),
    "w": np.asarray(w).tolist(),
  }
