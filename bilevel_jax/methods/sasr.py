"""SASR: each step is of SFT or of RL, by SFT's gradient norm (2505.13026).

After a warm-up of SFT, whose last gradient norm is G_warm, a step is of SFT
with the probability

    p = G_last / (G_last + gamma G_warm),

G_last the norm of the last SFT gradient: SFT while it still has much to say.
Ours: the optimiser is shared; the choice is made at the end of the step before,
so that the host knows what to sample.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, diagnostics, updates
from bilevel_jax.random_streams import Stream
from bilevel_jax.types import StepBatch, TrainState, Tree


@dataclasses.dataclass(frozen=True)
class Options:
  warmup_steps: int = setting(
    5, "first steps that are of SFT, before any is chosen at random", at_least=1
  )
  gamma: float = setting(
    1.0,
    "weight of the warm-up's gradient norm: the higher, the more RL",
    at_least=0,
  )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns SASR; the KL is to the policy that the warm-up made."""
  warmup_updates = options.warmup_steps * setup.updates_per_step
  by_sft = updates.descent(setup, "sft")
  by_rl = updates.descent(setup, "rl")

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    return contract.new_state(
      setup.optimizers,
      base=base,
      extra={
        "warm_norm": jnp.float32(0),
        "last_norm": jnp.float32(0),
        "sft_next": jnp.ones((), bool),
        **updates.reference_copy(setup, base),
      },
    )

  def update(state: TrainState, batch: StepBatch):
    extra, warming = dict(state.extra), state.updates < warmup_updates
    if batch.rl is None:
      done = by_sft(state, batch)
      norm = jnp.float32(done.metrics["optimizer/base_gradient_norm"])
      extra["last_norm"] = norm
      extra["warm_norm"] = jnp.where(warming, norm, extra["warm_norm"])
      copies = updates.reference_copy(setup, done.state.base)
      for name, copy in copies.items():
        extra[name] = optax.tree.where(warming, copy, extra[name])
    else:
      done = by_rl(state, batch)
    state = done.state
    share = diagnostics.sft_share(
      extra["last_norm"], options.gamma * extra["warm_norm"]
    )
    key = Stream.METHOD.key(setup.seed, state.updates)
    sampled = jax.random.uniform(key) < share
    extra["sft_next"] = sampled | (state.updates < warmup_updates)
    return done._replace(
      state=dataclasses.replace(state, extra=extra),
      metrics={**done.metrics, "mix/sft_probability": share},
    )

  def plan(step: int, scalars: Mapping[str, float]) -> contract.Plan:
    by_sft = bool(scalars["sft_next"])
    return contract.Plan(rollouts=not by_sft, demonstrations=by_sft)

  has_copy = setup.reference_dtype is not None
  return contract.Method(
    needs=contract.Needs(
      demonstrations="required", reference="own" if has_copy else "start"
    ),
    init=init,
    plan=plan,
    update=update,
  )
