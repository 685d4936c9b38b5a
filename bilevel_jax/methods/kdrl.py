"""KDRL: RL and a teacher's opinion of the same samples (arXiv 2506.02208)."""

import dataclasses

import jax
import jax.numpy as jnp

from bilevel_jax import config, types
from bilevel_jax.methods import contract, grpo, updates
from bilevel_jax.types import StepBatch, TrainState


@types.pytree
class _Taught(types.RLBatch):
  """Rollouts with what the teacher's opinion of each row weighs."""

  teacher_weights: types.Array  # [B]


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns RL plus beta KL(policy || teacher) on the policy's own samples.

  The estimate k2 = d^2 / 2, with d = log pi_teacher - log pi of a sampled
  token, has as a loss the gradient -d grad log pi, which is that of the KL:
  so it is d that the token's advantage is shifted by, times beta (for k3,
  whose gradient is not that of the KL, it is exp(d) - 1). Ours: the shift
  has the ratio and the clip of `rl.*`, which on policy are without effect.
  """
  options = settings.kdrl

  def shifted(logprobs, entropies, batch):
    del entropies
    shift = opinion(batch.expert_logprobs - logprobs, options.estimate)
    return batch.advantages + batch.teacher_weights[:, None] * shift

  reinforced = updates.reinforced(
    ingredients, objective=ingredients.reinforced(advantages=shifted)
  )

  def update(state: TrainState, batch: StepBatch):
    beta = jnp.maximum(
      options.start - options.decay * state.updates, options.end
    )
    rows = batch.rl
    listens = {
      "all": jnp.ones_like(rows.correct),
      "wrong": 1 - rows.correct,
      "unsolved": rows.accuracy == 0,
    }[options.listens]
    fields = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)}
    taught = _Taught(**fields, teacher_weights=beta * listens)
    state, metrics = reinforced(state, StepBatch(rl=taught, sft=None))
    return state, {
      **metrics,
      "mix/teacher_weight": jnp.float32(beta),
      "mix/taught_share": jnp.sum(listens * rows.scored)
      / jnp.sum(rows.scored).clip(min=1),
    }

  method = grpo.build(settings, ingredients)
  return method._replace(update=update, expert="rollouts", every_rollout=True)


def opinion(difference: jax.Array, estimate: str) -> jax.Array:
  """Returns what a token's advantage is shifted by, for a beta of 1.

  Args:
    difference: [B, T] log pi_teacher - log pi.
    estimate: of the KL, k2 or k3.
  """
  return difference if estimate == "k2" else jnp.expm1(difference)
