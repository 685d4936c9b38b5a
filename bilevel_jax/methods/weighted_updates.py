"""Updates by a weighted SFT loss and by RL, and what the weights do to L_RL.

    base  <- base - lr [ (1 - penalty) sum_i s_i dL_i + penalty dL_RL ]

L_i is a demonstration's share of the SFT loss, or a token's, and s_i its
weight. `one_step` serves both; the others are of demonstrations.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from bilevel_jax.bilevel import (
  cooperative,
  data_weights,
  implicit,
  problem,
  unrolled,
)
from bilevel_jax.bilevel import penalty as penalty_form
from bilevel_jax.methods import contract, estimators, terms
from bilevel_jax.types import Metrics, StepBatch, TokenBatch, TrainState, Tree


class Moved(NamedTuple):
  """What an update did, and what it says of its weights."""

  state: TrainState  # with what the form keeps in `extra`
  norms: Metrics
  derivatives: jax.Array  # [B], or [B, T], of L_RL by the weights
  rl: problem.Gradient
  sft: problem.Gradient
  agreement: problem.Agreement


Move: TypeAlias = Callable[
  [TrainState, StepBatch, jax.Array, terms.InContext, jax.Array], Moved
]
"""(state, batch, penalty, the weights as a context, whether any group of the
rollouts has a signal) -> Moved."""
