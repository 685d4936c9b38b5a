"""Prints what each hypergradient costs, and how far it is from the truth.

Error: relative, on a quadratic bilevel problem in float64 whose hypergradient
is known in closed form, with the lower level at its optimum. Memory and time:
on a deep residual network in float32, beside one plain gradient of the lower
objective; memory is the compiler's own count of temporary bytes, time the
median of interleaved runs on this machine.

  python tools/benchmark_hypergradients.py --json hypergradients.json
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.table

from bilevel_jax.bilevel import cooperative, implicit, penalty, unrolled
from bilevel_jax.bilevel.problem import (
  Estimator,
  Problem,
  gradient,
)

MIB = 2.0**20


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, or 130 if interrupted."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--layers", type=int, default=8, help="of the network")
  parser.add_argument("--width", type=int, default=64, help="of the network")
  parser.add_argument("--rows", type=int, default=512, help="of its batch")
  parser.add_argument(
    "--repeats", type=int, default=5, help="timed runs of each; 0: none"
  )
  parser.add_argument(
    "--only", default="", metavar="TEXT", help="estimators named like this"
  )
  parser.add_argument(
    "--json", type=pathlib.Path, metavar="FILE", help="write the figures here"
  )
  chosen = parser.parse_args(arguments)
  console = rich.console.Console()
  try:
    with console.status("errors against the closed form"):
      errors = accuracy(chosen.only)
    with console.status("memory and time"):
      costs = cost(
        chosen.layers,
        chosen.width,
        chosen.rows,
        repeats=chosen.repeats,
        only=chosen.only,
      )
  except KeyboardInterrupt:
    return 130
  rows = [
    {"estimator": name, "error": errors.get(name), **costs[name]}
    for name in costs
  ]
  console.print(_table(rows))
  if chosen.json is not None:
    chosen.json.write_text(json.dumps(rows, indent=2) + "\n")
  return 0


class Quadratic(NamedTuple):
  """A problem with its lower optimum and its hypergradient there."""

  problem: Problem
  optimum: Callable[[float], jax.Array]  # of (1 - p) upper + p lower
  adapter: jax.Array
  hypergradient: jax.Array
  step: float


def quadratic(size: int = 12, adapters: int = 5) -> Quadratic:
  """Returns lower = b'Ab/2 - b'Bw, upper = (b-d)'C(b-d)/2, in float64."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
  positive = lambda R: R @ R.T / size + jnp.eye(size)
  A, C = positive(normal(size, size)), positive(normal(size, size))
  B, d, w = normal(size, adapters), normal(size), normal(adapters)

  def optimum(weight):
    return jnp.linalg.solve(
      (1 - weight) * C + weight * A, (1 - weight) * C @ d + weight * B @ w
    )

  return Quadratic(
    problem=Problem(
      upper=lambda b, w, _: ((b - d) @ C @ (b - d) / 2, {}),
      lower=lambda b, w, _: (b @ A @ b / 2 - b @ B @ w, {}),
    ),
    optimum=optimum,
    adapter=w,
    hypergradient=B.T @ jnp.linalg.solve(A, C @ (optimum(1.0) - d)),
    step=float(1 / jnp.linalg.eigvalsh(A)[-1]),
  )


def estimators(step: float) -> dict[str, tuple[Estimator, Any]]:
  """Returns name -> (estimator, optimiser of the lower level or None)."""
  sgd, adam = optax.sgd(step), optax.adam(step / 10, eps_root=1e-16)
  rows: dict[str, tuple[Estimator, Any]] = {
    "one_step": (implicit.one_step(step), None),
    "one_step, finite difference": (
      implicit.one_step(step, mixed_product="finite_difference"),
      None,
    ),
  }
  for count in (4, 16):
    rows[f"implicit, Neumann {count}"] = (
      implicit.implicit(implicit.neumann(terms=count, step=step)),
      None,
    )
    rows[f"implicit, CG {count}"] = (
      implicit.implicit(
        implicit.conjugate_gradient(iterations=count, tolerance=1e-12),
        # The network is not convex: without damping CG would end at once.
        damping=0.0 if jax.config.read("jax_enable_x64") else 10.0,
      ),
      None,
    )
  for steps, (name, optimizer) in (
    (1, ("sgd", sgd)),
    (4, ("sgd", sgd)),
    (4, ("adam", adam)),
    (16, ("sgd", sgd)),
  ):
    rows[f"unrolled {steps}, {name}"] = (
      unrolled.unrolled(optimizer, steps=steps),
      optimizer,
    )
  return rows


def accuracy(only: str = "") -> dict[str, float]:
  """Returns name -> relative error of the estimators named like `only`."""
  with jax.enable_x64(True):
    q = quadratic()
    relative = lambda x: float(
      jnp.linalg.norm(x - q.hypergradient) / jnp.linalg.norm(q.hypergradient)
    )
    base, result = q.optimum(1.0), {}
    for weight in (0.9, 0.99):
      if only not in f"penalty {weight}":
        continue
      terms = penalty.terms(
        q.problem, q.optimum(weight), base, q.adapter, None, None
      )
      updates = penalty.combine(terms, weight)
      result[f"penalty {weight}"] = relative(updates.adapter / (1 - weight))
    for name, (estimate, optimizer) in estimators(q.step).items():
      if only not in name:
        continue
      state = None if optimizer is None else _live_state(optimizer, q)
      run = _runner(estimate, q.problem)
      result[name] = relative(jax.jit(run)(base, q.adapter, None, state))
    return result


def _live_state(optimizer: optax.GradientTransformation, q: Quadratic) -> Any:
  """The optimiser's state after 20 gradients of a base that is on its way."""
  base = q.optimum(1.0) + 1.0
  grad = gradient(q.problem.lower)(base, q.adapter, None).base
  state = optimizer.init(base)
  for _ in range(20):
    state = optimizer.update(grad, state, base)[1]
  return state


def network(layers: int, width: int, rows: int) -> tuple[Problem, Any]:
  """Returns a problem on a residual network, and (base, adapter, batch)."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  base = {
    "up": normal(layers, width, 4 * width) / width**0.5,
    "down": normal(layers, 4 * width, width) / width,
  }
  adapter = {
    "A": normal(layers, width, 4) / width**0.5,
    "B": normal(layers, 4, 4 * width) / 4,
  }

  def objective(sign):
    def evaluate(base, adapter, batch):
      def layer(x, weights):
        up, down, a, b = weights
        return x + jax.nn.gelu(x @ (up + a @ b)) @ down, None

      stack = (base["up"], base["down"], adapter["A"], adapter["B"])
      x, _ = jax.lax.scan(jax.checkpoint(layer), batch[0], stack)
      return jnp.mean(jnp.square(x - sign * batch[1])), {}

    return evaluate

  batch = (normal(rows, width), normal(rows, width))
  return Problem(objective(1.0), objective(-1.0)), (base, adapter, batch)


def cost(
  layers: int, width: int, rows: int, *, repeats: int, only: str = ""
) -> dict[str, dict[str, float | None]]:
  """Returns name -> temporary MiB and time, beside a plain gradient's."""
  problem, (base, adapter, batch) = network(layers, width, rows)
  step = 0.05
  upper, lower = gradient(problem.upper), gradient(problem.lower)

  def plain(base, adapter, batch, _):
    at = lower(base, adapter, batch)
    return at.base, at.adapter

  def penalised(base, adapter, batch, _):
    # A copy of its own, as in a run: else the compiler merges the branches.
    copy = jax.tree.map(lambda x: 0.9 * x, base)
    terms = penalty.terms(problem, base, copy, adapter, batch, batch)
    return penalty.combine(terms, 0.5)

  def first_order(base, adapter, batch, _):
    sgd = optax.sgd(step)
    return cooperative.first_order(
      upper,
      lower,
      base,
      adapter,
      batch,
      batch,
      weight=0.5,
      optimizer=sgd,
      optimizer_state=sgd.init(base),
    ).gradient

  def naive(base, adapter, batch, state):
    optimizer = optax.adam(step / 10, eps_root=1e-16)

    def outcome(adapter):
      b, s = base, state
      for _ in range(4):
        grad = jax.grad(problem.lower, has_aux=True)(b, adapter, batch)[0]
        updates, s = optimizer.update(grad, s, b)
        b = optax.apply_updates(b, updates)
      return problem.upper(b, adapter, batch)[0]

    return jax.grad(outcome)(adapter)

  adam = optax.adam(step / 10, eps_root=1e-16)
  runs: dict[str, tuple[Callable[..., Any], Any]] = {
    "plain gradient": (plain, None),
    "penalty 0.9": (penalised, None),
    "penalty 0.99": (penalised, None),
    "first_order of F": (first_order, None),
  }
  for name, (estimate, optimizer) in estimators(step).items():
    runs[name] = (_runner(estimate, problem), optimizer)
  runs["naive unroll 4, adam"] = (naive, adam)
  runs = {n: r for n, r in runs.items() if only in n or r[0] is plain}

  compiled, arguments = {}, {}
  for name, (run, optimizer) in runs.items():
    state = None if optimizer is None else optimizer.init(base)
    arguments[name] = (base, adapter, batch, state)
    compiled[name] = jax.jit(run).lower(*arguments[name]).compile()
  seconds = {name: [] for name in runs}
  for _ in range(repeats and repeats + 1):  # The first runs warm up.
    for name, program in compiled.items():
      start = time.perf_counter()
      jax.block_until_ready(program(*arguments[name]))
      seconds[name].append(time.perf_counter() - start)
  median = {n: statistics.median(s[1:]) for n, s in seconds.items() if s[1:]}
  bytes_ = {
    name: program.memory_analysis().temp_size_in_bytes
    for name, program in compiled.items()
  }
  return {
    name: {
      "temporary_mib": bytes_[name] / MIB,
      "memory_ratio": bytes_[name] / bytes_["plain gradient"],
      "time_ratio": median[name] / median["plain gradient"] if median else None,
    }
    for name in runs
  }


def _runner(estimate: Estimator, problem: Problem) -> Callable[..., Any]:
  def run(base, adapter, batch, state):
    return estimate(
      gradient(problem.upper),
      gradient(problem.lower),
      base,
      adapter,
      batch,
      batch,
      state,
    ).gradient

  return run


def _table(rows: list[dict[str, Any]]) -> rich.table.Table:
  table = rich.table.Table()
  table.add_column("estimator")
  for title in ("error", "temp MiB", "x memory", "x time"):
    table.add_column(title, justify="right")
  show = lambda value, form: "-" if value is None else format(value, form)
  for row in rows:
    table.add_row(
      row["estimator"],
      show(row["error"], ".1e"),
      show(row["temporary_mib"], ".1f"),
      show(row["memory_ratio"], ".1f"),
      show(row["time_ratio"], ".1f"),
    )
  return table


if __name__ == "__main__":
  sys.exit(main())
