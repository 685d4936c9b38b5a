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
  """What a run calls; each is compiled once for each shape of batch.

  All but `init` end with what a policy over a frozen base takes, `Policy.over`;
  None, the default: nothing is frozen. It is an argument and no constant of the
  program, which would hold a copy.
  """

  init: Callable[[Tree, Tree | None], TrainState]
  update: Callable[..., tuple[TrainState, Metrics]]
  """(state, batch, frozen) -> (state, metrics); donates the state."""
  logprobs: Callable[..., jax.Array]
  """(base, adapter, batch, frozen) -> [B, T]."""
  merge: Callable[..., Tree]
  """(base, adapter, frozen) -> what the sampler reads."""
  delta_norm: Callable[..., jax.Array]
  """(base, adapter, frozen) -> ||scale * A @ B|| / ||W|| of the matrices that
  have factors, be they the adapter's or in the place of the base."""


def compile_programs(
  make: Callable[[Policy], contract.Method],
  policy: Policy,
  *,
  temperature: float,
  chunk: int,
  adapter_scale: float,
  state_shardings: Any = None,
) -> Programs:
  """Returns the jitted programs of a method on a policy.

  Args:
    make: builds the method; again for each program of a policy over a frozen
      base, so that what it closes over is an argument.
    temperature: of the rollouts; log-probs are of the tempered policy.
    chunk: positions whose logits are in memory at once.
    adapter_scale: what A @ B is multiplied by.
    state_shardings: TrainState of shardings, or None on a single device.
  """

  def update(state: TrainState, batch: StepBatch, frozen: Tree = None):
    # What is computed while a method is built is no part of the program.
    with jax.ensure_compile_time_eval():
      method = make(bound(policy, frozen))
    return guarded(method.update)(state, batch)

  def merge(base: Tree, adapter: Tree | None, frozen: Tree):
    return bound(policy, frozen).merge(base, adapter)

  def delta_norm(base: Tree, adapter: Tree | None, frozen: Tree = None):
    if frozen is not None:
      base, adapter = frozen, {**base, **(adapter or {})}
    delta, weight = lora.delta_norm(base, adapter, adapter_scale)
    return delta / weight

  whole_merge, merge_over = jax.jit(policy.merge), jax.jit(merge)
  return Programs(
    init=jax.jit(make(policy).init, out_shardings=state_shardings),
    update=jax.jit(
      update,
      donate_argnums=0,
      out_shardings=None
      if state_shardings is None
      else (state_shardings, None),
    ),
    logprobs=jax.jit(scoring(policy, temperature=temperature, chunk=chunk)),
    # Equal policies have one function, and so one program.
    merge=lambda base, adapter, frozen=None: (
      whole_merge(base, adapter)
      if frozen is None
      else merge_over(base, adapter, frozen)
    ),
    delta_norm=jax.jit(delta_norm),
  )


def bound(policy: Policy, frozen: Tree | None) -> Policy:
  """Returns the policy over its frozen base; itself where nothing is."""
  return policy if policy.over is None else policy.over(frozen)


def scoring(
  policy: Policy, *, temperature: float, chunk: int
) -> Callable[..., jax.Array]:
  """Returns (base, adapter, batch, frozen) -> log-probs, by micro-batches.

  Args:
    chunk: positions whose logits are in memory at once.
  """

  def logprobs(
    base: Tree, adapter: Tree | None, batch: TokenBatch, frozen: Tree = None
  ):
    over = bound(policy, frozen)

    def rows(part: TokenBatch):
      return terms.token_logprobs(
        over, base, adapter, part, temperature=temperature, chunk=chunk
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
