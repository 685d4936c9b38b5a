"""The compiled programs of a run; the only place where training is jitted."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel_jax.methods import accumulation, contract, terms
from bilevel_jax.models import lora
from bilevel_jax.types import (
  Metrics,
  Policy,
  StepBatch,
  TokenBatch,
  TrainState,
  Tree,
)


class Programs(NamedTuple):
  """What a run calls; each is compiled once for each shape of batch."""

  init: Callable[[Tree, Tree | None], TrainState]
  update: Callable[[TrainState, StepBatch], tuple[TrainState, Metrics]]
  """Donates the state it is given."""
  logprobs: Callable[[Tree, Tree | None, TokenBatch], jax.Array]
  finish: Callable[[TrainState], TrainState]
  """The method's own, if it has one. Donates the state it is given."""
  merge: Callable[[Tree, Tree | None], Tree]
  delta_norm: Callable[[Tree, Tree], jax.Array]
  """(base, adapter) -> ||scale * A @ B|| / ||W|| of the adapted matrices."""


def compile_programs(
  method: contract.Method,
  policy: Policy,
  *,
  temperature: float,
  chunk: int,
  adapter_scale: float,
  state_shardings: Any = None,
) -> Programs:
  """Returns the jitted programs of a method on a policy.

  Args:
    method: what to run.
    policy: the model.
    temperature: of the rollouts; log-probs are of the tempered policy.
    chunk: positions whose logits are in memory at once.
    adapter_scale: what A @ B is multiplied by.
    state_shardings: TrainState of shardings, or None on a single device.
  """

  def delta_norm(base: Tree, adapter: Tree):
    delta, weight = lora.delta_norm(base, adapter, adapter_scale)
    return delta / weight

  return Programs(
    init=jax.jit(method.init, out_shardings=state_shardings),
    update=jax.jit(
      guarded(method.update),
      donate_argnums=0,
      out_shardings=None
      if state_shardings is None
      else (state_shardings, None),
    ),
    logprobs=jax.jit(scoring(policy, temperature=temperature, chunk=chunk)),
    finish=jax.jit(
      method.finish or (lambda state: state),
      donate_argnums=0,
      out_shardings=state_shardings,
    ),
    merge=jax.jit(policy.merge),
    delta_norm=jax.jit(delta_norm),
  )


def scoring(
  policy: Policy, *, temperature: float, chunk: int
) -> Callable[[Tree, Tree | None, TokenBatch], jax.Array]:
  """Returns (base, adapter, batch) -> log-probs [B, T], by micro-batches.

  Args:
    policy: the model.
    temperature: of the policy that is asked.
    chunk: positions whose logits are in memory at once.
  """

  def logprobs(base: Tree, adapter: Tree | None, batch: TokenBatch):
    def rows(part: TokenBatch):
      return terms.token_logprobs(
        policy, base, adapter, part, temperature=temperature, chunk=chunk
      )[0]

    found = accumulation.map_micro_batches(lambda part: ((), rows(part)), batch)
    return found[1]

  return logprobs


def guarded(
  update: Callable[[TrainState, StepBatch], tuple[TrainState, Metrics]],
) -> Callable[[TrainState, StepBatch], tuple[TrainState, Metrics]]:
  """Returns `update`, except that a non-finite one leaves the state alone.

  An update is non-finite when one of its losses or gradient norms is. The
  count of such updates in a row is kept in the state.
  """

  def guarded_update(state: TrainState, batch: StepBatch):
    new_state, metrics = update(state, batch)
    watched = [
      value
      for name, value in metrics.items()
      if name.endswith(("/loss", "gradient_norm"))
    ]
    finite = jnp.isfinite(jnp.stack(watched)).all()
    kept = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old), new_state, state
    )
    kept = dataclasses.replace(
      kept,
      skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
    )
    skipped = 1.0 - finite.astype(jnp.float32)
    return kept, {**metrics, "training/skipped_updates": skipped}

  return guarded_update
