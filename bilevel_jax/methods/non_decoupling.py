"""How much SFT undoes RL, and RL SFT: a diagnostic (arXiv 2601.07389)."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import optax

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, updates
from bilevel_jax.types import StepBatch, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
  first: Literal["sft", "rl"] = setting("sft", "loss of the first stage")
  first_share: float = setting(
    0.5,
    "share of the updates that are the first stage's",
    at_least=0,
    at_most=1,
  )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns two stages, of SFT and of RL, both measured in every step.

  Each step has rollouts and demonstrations and takes both gradients, of which
  only its stage's moves the base: so the SFT loss and the reward are known
  through both stages, with the gradients' cosine. In the second stage
  `rl/kl_to_reference` is to what the first one made. The order is
  `method.non_decoupling.first`; each stage has a fresh optimiser state.
  """
  first_updates = round(options.first_share * setup.total_updates)
  # The reference is kept whether or not there is a KL term.
  setup = setup._replace(reference_dtype=setup.reference_dtype or jnp.float32)

  def weigh(found: updates.Found) -> updates.Mix:
    first = found.state.updates < first_updates
    of_sft = jnp.float32(first == (options.first == "sft"))
    return updates.Mix(sft_weight=of_sft, rl_weight=1 - of_sft)

  method = updates.joint(
    setup, weigh, extra=lambda base: updates.reference_copy(setup, base)
  )

  def update(state: TrainState, batch: StepBatch):
    done = method.update(state, batch)
    state = done.state
    fresh = contract.new_state(setup.optimizers, base=state.base)
    afresh = dataclasses.replace(
      state,
      optimizer_states=fresh.optimizer_states,
      extra=updates.reference_copy(setup, state.base),
    )
    switches = state.updates == first_updates
    return done._replace(state=optax.tree.where(switches, afresh, state))

  needs = method.needs._replace(reference="own", every_rollout=True)
  return method._replace(update=update, needs=needs)
