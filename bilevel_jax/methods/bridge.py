"""BRIDGE: joint SFT and RL as a bilevel problem (arXiv 2509.06948).

One update, every gradient at the old parameters, as losses to minimise:

    base          <- base - lr [ (1 - penalty) dL_SFT + penalty dL_RL ]
    rl_only_base  <- rl_only_base - lr dL_RL(rl_only_base, adapter)
    adapter       <- adapter - lr' [ (1 - penalty) dL_SFT
                       + penalty (dL_RL - dL_RL(rl_only_base, adapter)) ]

The rollouts were sampled from (base, adapter) and are shared: the RL-only
branch is scored on the same tokens. What the paper leaves open is a setting
(`config.Method`), the default first.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from bilevel_jax import config
from bilevel_jax.bilevel import penalty as penalty_form
from bilevel_jax.bilevel.problem import Gradient
from bilevel_jax.methods import contract, diagnostics
from bilevel_jax.types import RLBatch, StepBatch, TrainState, Tree


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns BRIDGE in its penalty form."""
  optimizers = ingredients.optimizers
  persistent = settings.rl_only_base != "one_step"
  penalty_of = optax.linear_schedule(
    settings.penalty,
    settings.penalty if settings.penalty_end is None else settings.penalty_end,
    ingredients.total_updates,
  )

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    if not persistent:
      return contract.new_state(optimizers, base=base, adapter=adapter)
    # A copy of its own: the two are donated to the update separately.
    copy = jax.tree.map(jnp.copy, base)
    return contract.new_state(
      optimizers, base=base, adapter=adapter, rl_only_base=copy
    )

  def rl_only_batch(batch: RLBatch, aux: dict[str, jax.Array]) -> RLBatch:
    """The shared rollouts, as the RL-only branch's ratio needs them."""
    if settings.rl_only_ratio == "on_policy":
      return dataclasses.replace(batch, old_logprobs=None)
    if batch.old_logprobs is None:
      return dataclasses.replace(batch, old_logprobs=aux["logprobs"])
    return batch

  def update(state: TrainState, batch: StepBatch):
    if settings.rl_only_base == "resync":
      state = _resynchronise(state, settings.resync_every)

    def rebuild(lower: Gradient) -> Tree:
      return penalty_form.one_step(
        optimizers["base"],
        state.optimizer_states["base"],
        state.base,
        lower.base,
      )[0]

    penalty = penalty_of(state.updates)
    terms = penalty_form.terms(
      ingredients.problem,
      state.base,
      state.rl_only_base,
      state.adapter,
      batch.sft,
      batch.rl,
      gradient=ingredients.gradient,
      rl_only_batch=rl_only_batch,
      rebuild=None if persistent else rebuild,
    )
    gradients = penalty_form.combine(terms, penalty)._asdict()
    if not persistent:
      del gradients["rl_only_base"]
    state, norms = contract.advance(state, optimizers, gradients)
    return state, {
      "sft/loss": terms.upper.loss,
      "rl/loss": terms.lower.loss,
      "bilevel/penalty": penalty,
      **diagnostics.rollout_metrics(batch.rl, terms.lower.aux),
      **diagnostics.rl_only_metrics(
        batch.rl, terms.lower.aux, terms.rl_only.aux
      ),
      **diagnostics.gradient_metrics(terms.upper.base, terms.lower.base),
      **norms,
    }

  return contract.Method(
    trains_adapter=True,
    init=init,
    plan=lambda step: contract.Plan(rollouts=True, demonstrations=True),
    update=update,
  )


def _resynchronise(state: TrainState, every: int) -> TrainState:
  resync = functools.partial(
    penalty_form.resync, updates=state.updates, every=every
  )
  states = dict(state.optimizer_states)
  if jax.tree.structure(states["base"]) == jax.tree.structure(
    states["rl_only_base"]
  ):
    states["rl_only_base"] = resync(states["base"], states["rl_only_base"])
  return dataclasses.replace(
    state,
    rl_only_base=resync(state.base, state.rl_only_base),
    optimizer_states=states,
  )
