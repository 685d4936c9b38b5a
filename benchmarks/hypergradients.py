"""Prints what each hypergradient costs, and how far it is from the truth.

Error: relative, on a quadratic bilevel problem in float64 whose hypergradient
is known in closed form, with the lower level at its optimum. Memory and time:
of BRIDGE's whole update of a language model in float32, beside GRPO's on the
same rollouts; demonstrations have a fifth of their tokens. Weights of
demonstrations are beside mixed's update, which has the same two gradients.
Memory is the compiler's own count of temporary bytes; time the median of the
ratios to the other update, which ran just before, on this machine.

  python benchmarks/hypergradients.py --json hypergradients.json
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.progress
import rich.table

from bilevel_jax import config, methods
from bilevel_jax.bilevel import implicit, penalty, unrolled
from bilevel_jax.bilevel.problem import Estimator, Problem, gradient
from bilevel_jax.methods import accumulation, contract, terms
from bilevel_jax.objectives import policy_gradient, weighting
from bilevel_jax.training import learner, optimizers
from bilevel_jax.types import TrainState

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from benchmarks.problems import language_model, quadratic

MIB = 2.0**20


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, or 130 if interrupted."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name, default, meaning in (
    ("layers", 2, "of the language model"),
    ("width", 128, "of the language model"),
    ("rows", 32, "rollouts of an update"),
    ("tokens", 128, "of each row"),
    ("micro-batch", 8, "rows of a forward pass"),
  ):
    parser.add_argument(f"--{name}", type=int, default=default, help=meaning)
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
    model = language_model.make(
      layers=chosen.layers,
      width=chosen.width,
      rows=chosen.rows,
      tokens=chosen.tokens,
      micro_batch=chosen.micro_batch,
    )
    costs = cost(model, repeats=chosen.repeats, only=chosen.only)
  except KeyboardInterrupt:
    return 130
  rows = [
    {"estimator": name, "error": errors.get(_same(name)), **costs[name]}
    for name in costs
  ]
  console.print(_table(rows))
  if chosen.json is not None:
    chosen.json.write_text(json.dumps(rows, indent=2) + "\n")
  return 0


def _same(name: str) -> str | None:
  return FORMS[name].same_as if name in FORMS else None


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
    q = quadratic.make()
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
      result[f"penalty {weight}"] = relative(updates.upper / (1 - weight))
    for name, (estimate, optimizer) in estimators(q.step).items():
      if only not in name:
        continue
      state = None if optimizer is None else _live_state(optimizer, q)
      run = _runner(estimate, q.problem)
      result[name] = relative(jax.jit(run)(base, q.adapter, None, state))
    return result


def _live_state(
  optimizer: optax.GradientTransformation, q: quadratic.Quadratic
) -> Any:
  """The optimiser's state after 20 gradients of a base that is on its way."""
  base = q.optimum(1.0) + 1.0
  grad = gradient(q.problem.lower)(base, q.adapter, None).by_lower
  state = optimizer.init(base)
  for _ in range(20):
    state = optimizer.update(grad, state, base)[1]
  return state


class Form(NamedTuple):
  """A way of making the adapter's gradient, as settings of a method."""

  settings: dict[str, Any]
  method: str = "bridge"
  optimizer: Literal["adamw", "sgd"] = "adamw"
  same_as: str | None = None  # the row of `accuracy` that it is
  beside: str = "grpo"  # what it is compared with


REBUILT = {"rl_only_base": "one_step"}
ONE_STEP = {"hypergradient": "one_step", **REBUILT}
UNROLLED = {"hypergradient": "unrolled"}
IMPLICIT = {"hypergradient": "implicit", "solver_tolerance": 0.0}
EXACT = {"mixed_product": "exact"}
WEIGHTS = {"upper": "demonstrations"}
FORMS = {
  "grpo": Form({}, method="grpo"),
  "penalty": Form({}, same_as="penalty 0.9"),
  "penalty, one_step base": Form(REBUILT),
  "one_step": Form(ONE_STEP | EXACT, same_as="one_step"),
  "one_step, finite difference": Form(
    ONE_STEP, same_as="one_step, finite difference"
  ),
  "implicit, CG 4": Form(
    IMPLICIT | {"solver_iterations": 4, "damping": 10.0},
    same_as="implicit, CG 4",
  ),
  "implicit, Neumann 4": Form(
    IMPLICIT | {"solver_iterations": 4, "solver": "neumann"},
    same_as="implicit, Neumann 4",
  ),
  "unrolled 1, sgd": Form(UNROLLED, optimizer="sgd", same_as="unrolled 1, sgd"),
  "unrolled 1, adam": Form(UNROLLED),
  "unrolled 4, adam": Form(
    UNROLLED | {"inner_steps": 4}, same_as="unrolled 4, adam"
  ),
  "mixed": Form({}, method="mixed"),
  "weights": Form(WEIGHTS, beside="mixed"),
  "weights, exact": Form(WEIGHTS | EXACT, beside="mixed"),
  "weights, unrolled 1": Form(WEIGHTS | UNROLLED, beside="mixed"),
}


def update(
  form: Form, model: language_model.LanguageModel
) -> tuple[Callable[..., Any], TrainState]:
  """Returns a method's whole update, optimisers included, and its state."""
  found = methods.find(form.method)
  inner = optimizers.build(
    config.Optimizer(name=form.optimizer, learning_rate=1e-4), 100
  )
  method = found.build(
    found.options and found.options(**form.settings),
    contract.Setup(
      sft_loss=functools.partial(terms.sft_objective, model.policy, chunk=1024),
      rl_loss=lambda surrogate="fixed_sample": model.problem(surrogate).lower,
      teacher=learner.teaching(model.policy, temperature=1.0, chunk=1024),
      base_optimizer=lambda learning_rate, updates, plain: inner,
      advantages=functools.partial(
        policy_gradient.group_advantages, normalise="group_std"
      ),
      as_one_batch=functools.partial(
        weighting.as_one_batch,
        rl=weighting.token_mean,
        sft=weighting.token_mean,
      ),
      gradient=accumulation.gradient,
      optimizers={"base": inner, "adapter": inner},
      total_updates=100,
      demonstration_groups=contract.DemonstrationGroups(
        members=np.zeros(len(model.batch.sft.tokens), np.int32)
      ),
    ),
  )
  adapter = model.adapter if method.needs.adapter else None
  return method.update, method.init(model.base, adapter)


def naive_unroll(
  model: language_model.LanguageModel,
) -> tuple[Callable[..., Any], TrainState]:
  """Returns `jax.grad` through four plain steps, and a state of its own."""
  form = FORMS["unrolled 4, adam"]
  _, state = update(form, model)
  adam = optimizers.build(config.Optimizer(learning_rate=1e-4), 100)
  upper, lower = model.problem("dice")

  def joint(base, adapter, batch):
    return (
      0.5 * upper(base, adapter, batch.sft)[0]
      + 0.5 * lower(base, adapter, batch.rl)[0]
    )

  def alone(base, adapter, batch):
    return lower(base, adapter, batch.rl)[0]

  def run(state, batch):
    def end(objective, base, inner, adapter):
      def step(carry, _):
        base, inner = carry
        grad = jax.grad(objective)(base, adapter, batch)
        update, inner = adam.update(grad, inner, base)
        return (optax.apply_updates(base, update), inner), None

      (base, _), _ = jax.lax.scan(step, (base, inner), None, length=4)
      return objective(base, adapter, batch)

    def outcome(adapter):
      states = state.optimizer_states
      return end(joint, state.base, states["base"], adapter) - 0.5 * end(
        alone, state.rl_only_base, states["rl_only_base"], adapter
      )

    return jax.grad(outcome)(state.adapter)

  return run, state


NAIVE = "naive unroll 4, adam"


def cost(
  model: language_model.LanguageModel, *, repeats: int, only: str = ""
) -> dict[str, dict[str, Any]]:
  """Returns name -> memory and time of an update, beside another's."""
  reference = lambda name: FORMS[name].beside if name in FORMS else "grpo"
  names = [name for name in (*FORMS, NAIVE) if only in name]
  names = ["grpo", *map(reference, names), *names]
  beside = {name: reference(name) for name in names}
  compiled, states = {}, {}
  for name in rich.progress.track(list(dict.fromkeys(names)), "compiling"):
    run, states[name] = (
      naive_unroll(model) if name == NAIVE else update(FORMS[name], model)
    )
    compiled[name] = jax.jit(run).lower(states[name], model.batch).compile()

  def seconds(name: str) -> float:
    start = time.perf_counter()
    jax.block_until_ready(compiled[name](states[name], model.batch))
    return time.perf_counter() - start

  # Each beside an update of its own to compare with; the first pair warms up.
  ratios = {}
  try:
    for name in rich.progress.track(list(beside), "measuring"):
      pairs = [
        (seconds(beside[name]), seconds(name)) for _ in range(repeats + 1)
      ]
      if repeats:
        ratios[name] = statistics.median(b / a for a, b in pairs[1:])
  except KeyboardInterrupt:
    pass  # the table has what was measured so far
  bytes_ = {
    name: program.memory_analysis().temp_size_in_bytes
    for name, program in compiled.items()
  }
  return {
    name: {
      "temporary_mib": bytes_[name] / MIB,
      "memory_ratio": bytes_[name] / bytes_[beside[name]],
      "time_ratio": ratios.get(name),
      "beside": beside[name],
    }
    for name in beside
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
  for title in ("error", "temp MiB", "x memory", "x time", "of"):
    table.add_column(title, justify="right")
  show = lambda value, form: "-" if value is None else format(value, form)
  for row in rows:
    table.add_row(
      row["estimator"],
      show(row["error"], ".1e"),
      show(row["temporary_mib"], ".1f"),
      show(row["memory_ratio"], ".2f"),
      show(row["time_ratio"], ".2f"),
      row["beside"],
    )
  return table


if __name__ == "__main__":
  sys.exit(main())
