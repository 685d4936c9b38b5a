"""KDRL: RL and a teacher's opinion of the same samples (arXiv 2506.02208)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from bilevel_jax import types
from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, updates
from bilevel_jax.types import StepBatch, TrainState

ESTIMATES = ("k2", "k3")


@dataclasses.dataclass(frozen=True)
class Listening:
  """Which samples hear a teacher."""

  listens: Literal["all", "wrong", "unsolved"] = setting(
    "all",
    "samples that hear the teacher: all, those that are wrong, or those of "
    "questions without a right one",
  )

  def heard(self, rows: types.RLBatch) -> jax.Array:
    """Returns [B] float, 1 for each sample that hears it.

    Args:
      rows: B samples, with what is right of them and of their groups.
    """
    return {
      "all": jnp.ones_like(rows.correct),
      "wrong": 1 - rows.correct,
      "unsolved": jnp.float32(rows.accuracy == 0),
    }[self.listens]


@dataclasses.dataclass(frozen=True)
class Options(Listening):
  start: float = setting(5e-3, "first weight of the teacher, beta", at_least=0)
  end: float = setting(
    1e-3, "last weight of the teacher; `start`: it is constant", at_least=0
  )
  decay: float = setting(
    5e-5, "what the teacher's weight loses in an update", at_least=0
  )
  estimate: Literal["k2", "k3"] = setting(
    "k2", "estimate of the KL to the teacher; k2 alone has the KL's gradient"
  )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns RL plus beta KL(policy || teacher) on the policy's own samples.

  The estimate k2 = d^2 / 2, with d = log pi_teacher - log pi of a sampled
  token, has as a loss the gradient -d grad log pi, which is that of the KL:
  so it is d that the token's advantage is shifted by, times beta (for k3,
  whose gradient is not that of the KL, it is exp(d) - 1). Ours: the shift
  has the ratio and the clip of `rl.*`, which on policy are without effect.
  """

  def shifted(logprobs, entropies, batch):
    shift = opinion(batch.expert_logprobs - logprobs, options.estimate)
    return batch.advantages + batch.teacher_weights[:, None] * shift

  method = updates.rl_method(
    setup,
    objective=setup.rl_loss(advantages=shifted),
    needs=contract.Needs(expert="rollouts", every_rollout=True),
  )

  def update(state: TrainState, batch: StepBatch[types.RLBatch, None]):
    beta = jnp.maximum(
      options.start - options.decay * state.updates, options.end
    )
    rows = batch.rl
    listens = options.heard(rows)
    taught = dataclasses.replace(rows, teacher_weights=beta * listens)
    done = method.update(state, StepBatch(rl=taught, sft=None))
    taught_share = jnp.sum(listens * rows.scored) / jnp.sum(rows.scored).clip(
      min=1
    )
    return done._replace(
      metrics={
        **done.metrics,
        "mix/teacher_weight": jnp.float32(beta),
        "mix/taught_share": taught_share,
      }
    )

  return method._replace(update=update)


def opinion(difference: jax.Array, estimate: str) -> jax.Array:
  """Returns what a token's advantage is shifted by, for a beta of 1.

  Args:
    difference: [B, T] log pi_teacher - log pi.
    estimate: of the KL, k2 or k3.
  """
  return difference if estimate == "k2" else jnp.expm1(difference)
