"""In each step an update of RL, then one of SFT on what RL cannot solve."""

import dataclasses

import jax.numpy as jnp
import optax

from bilevel_jax.methods import contract, diagnostics, routing, updates
from bilevel_jax.types import RLBatch, StepBatch, TokenBatch, TrainState

Options = updates.SFTRate


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns RL on all of a step's rollouts, then SFT on its unsolved questions.

  Each has its own optimiser; SFT learns from the demonstrations of questions
  whose scored samples are all wrong, and where there is none it does nothing.
  One of the recipes of arXiv 2507.07562, whose definition could not be read:
  this one is ours.
  """
  init, turn = updates.by_turns(setup, options)

  def route(groups: contract.Groups, host: contract.Host) -> routing.Route:
    advantages, _ = setup.advantages(*groups.outcomes)
    return routing.Route(advantages, demonstrations=groups.accuracy == 0)

  def update(state: TrainState, batch: StepBatch[RLBatch, TokenBatch]):
    by_rl = turn(state, batch)
    by_sft = turn(by_rl.state, dataclasses.replace(batch, rl=None))
    # An optimiser with momentum moves even where there is nothing to learn.
    learns = jnp.any(batch.sft.weights != 0)
    state = optax.tree.where(learns, by_sft.state, by_rl.state)
    norms = {
      "sft/gradient_norm": by_sft.metrics["optimizer/base_gradient_norm"],
      "rl/gradient_norm": by_rl.metrics["optimizer/base_gradient_norm"],
    }
    return contract.Updated(
      dataclasses.replace(state, updates=by_rl.state.updates),
      {
        **by_rl.metrics,
        **norms,
        "sft/loss": by_sft.metrics["sft/loss"],
        "mix/sft_share": diagnostics.sft_share(*norms.values()),
      },
      must_be_finite=(by_rl.must_be_finite, by_sft.must_be_finite),
    )

  plan = contract.Plan(rollouts=True, demonstrations=True)
  return contract.Method(
    needs=contract.Needs(demonstrations="own"),
    init=init,
    plan=lambda step, scalars: plan,
    update=update,
    batches=routing.routed(route),
  )
