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
    merge=jax.jit(policy.merge),
    delta_norm=jax.jit(delta_norm),
  )


def scoring(
  policy: Policy, *, temperature: float, chunk: int
) -> Callable[[Tree, Tree | None, TokenBatch], jax.Array]:
  """Returns (base, adapter, batch) -> log-probs [B, T], by micro-batches.

  Args:
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
  update: Callable[[TrainState, StepBatch], contract.Updated],
) -> Callable[[TrainState, StepBatch], tuple[TrainState, Metrics]]:
  """Returns `update`, except that a non-finite one leaves the state alone.

  An update is non-finite when something that it says must be finite is not. The
  count of such updates in a row is kept in the state; an update that names
  nothing is none of them.
  """

  def guarded_update(state: TrainState, batch: StepBatch):
    new, metrics, watched = contract.Updated(*update(state, batch))
    watched = [jnp.isfinite(x).all() for x in jax.tree.leaves(watched)]
    if not watched:
      return new, {**metrics, "training/skipped_updates": jnp.float32(0)}
    finite = jnp.stack(watched).all()
    kept = jax.tree.map(lambda x, old: jnp.where(finite, x, old), new, state)
    kept = dataclasses.replace(
      kept, skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1)
    )
    skipped = 1.0 - finite.astype(jnp.float32)
    return kept, {**metrics, "training/skipped_updates": skipped}

  return guarded_update
