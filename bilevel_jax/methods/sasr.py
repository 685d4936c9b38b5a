"""SASR: each step is of SFT or of RL, by SFT's gradient norm (2505.13026).

After a warm-up of SFT, whose last gradient norm is G_warm, a step is of SFT
with the probability

    p = G_last / (G_last + gamma G_warm),

G_last the norm of the last SFT gradient: SFT while it still has much to say.
Ours: the optimiser is shared; the gate is drawn at the end of the step before,
so that the host knows what to sample.
"""

import dataclasses

import jax
import jax.numpy as jnp

from bilevel_jax import config
from bilevel_jax.methods import contract, updates
from bilevel_jax.types import StepBatch, TrainState, Tree


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns SASR; the KL is to the policy that the warm-up made."""
  options = settings.sasr
  warmup_updates = options.warmup_steps * ingredients.updates_per_step
  supervised = updates.supervised(ingredients)
  reinforced = updates.reinforced(ingredients)

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    del adapter
    return dataclasses.replace(
      contract.new_state(ingredients.optimizers, base=base),
      extra={
        "warm_norm": jnp.float32(0),
        "last_norm": jnp.float32(0),
        "supervised": jnp.ones((), bool),
        **updates.reference_copy(ingredients, base),
      },
    )

  def update(state: TrainState, batch: StepBatch):
    extra, warming = dict(state.extra), state.updates < warmup_updates
    if batch.rl is None:
      state, metrics = supervised(state, batch)
      norm = jnp.float32(metrics["optimizer/base_gradient_norm"])
      extra["last_norm"] = norm
      extra["warm_norm"] = jnp.where(warming, norm, extra["warm_norm"])
      for name, copy in updates.reference_copy(ingredients, state.base).items():
        extra[name] = jax.tree.map(
          lambda new, old: jnp.where(warming, new, old), copy, extra[name]
        )
    else:
      state, metrics = reinforced(state, batch)
    share = probability(
      extra["last_norm"], extra["warm_norm"], gamma=options.gamma
    )
    key = jax.random.fold_in(jax.random.key(ingredients.seed), state.updates)
    drawn = jax.random.uniform(key) < share
    extra["supervised"] = drawn | (state.updates < warmup_updates)
    return dataclasses.replace(state, extra=extra), {
      **metrics,
      "mix/sft_probability": share,
    }

  def narrow(state: TrainState, plan: contract.Plan) -> contract.Plan:
    supervised = bool(state.extra["supervised"])
    return plan._replace(rollouts=not supervised, demonstrations=supervised)

  has_copy = ingredients.reference_dtype is not None
  return contract.Method(
    trains_adapter=False,
    init=init,
    plan=lambda step: contract.Plan(rollouts=True, demonstrations=True),
    update=update,
    narrow=narrow,
    reference=(lambda state: state.extra["reference"]) if has_copy else None,
  )


def probability(
  last_norm: jax.Array, warm_norm: jax.Array, *, gamma: float
) -> jax.Array:
  """Returns p = last / (last + gamma warm), 0 where both norms are.

  Args:
    last_norm: scalar, of the last SFT gradient.
    warm_norm: scalar, of the warm-up's.
    gamma: weight of the latter.
  """
  total = last_norm + gamma * warm_norm
  return jnp.where(total > 0, last_norm / jnp.where(total > 0, total, 1), 0.0)
