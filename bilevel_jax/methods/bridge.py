"""BRIDGE: joint SFT and RL as a bilevel problem (arXiv 2509.06948).

One update in the penalty form, every gradient at the old parameters, as
losses to minimise:

    base          <- base - lr [ (1 - penalty) dL_SFT + penalty dL_RL ]
    rl_only_base  <- rl_only_base - lr dL_RL(rl_only_base, adapter)
    adapter       <- adapter - lr' [ (1 - penalty) dL_SFT
                       + penalty (dL_RL - dL_RL(rl_only_base, adapter)) ]

The rollouts were sampled from (base, adapter) and are shared: the RL-only
branch is scored on the same tokens. What the paper leaves open is a setting
(`config.Method`), the default first; the forms of the hypergradient are in
`methods.hypergradients`, the arithmetic in `bilevel`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from bilevel_jax import config
from bilevel_jax.bilevel import penalty as penalty_form
from bilevel_jax.bilevel import problem, schedules, unrolled
from bilevel_jax.methods import contract, hypergradients
from bilevel_jax.types import StepBatch, TrainState, Tree


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns BRIDGE.

  Raises:
    ConfigError: an optimiser that the hypergradient cannot differentiate, or
      bounds of the adaptive penalty that contradict each other.
  """
  optimizers = ingredients.optimizers
  wanted = (settings.hypergradient, *settings.compare_with)
  _check_optimizers(wanted, ingredients)
  rule = _penalty_rule(settings, ingredients.total_updates)
  propose, *others = [
    hypergradients.FORMS[name](settings, ingredients) for name in wanted
  ]

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    trees = {"base": base, "adapter": adapter}
    if settings.rl_only_base != "one_step":
      # A copy of its own: the two are donated to the update separately.
      trees["rl_only_base"] = jax.tree.map(jnp.copy, base)
    unknown = jnp.full((), jnp.nan, jnp.float32)  # no update has measured it
    return dataclasses.replace(
      contract.new_state(optimizers, **trees),
      extra={"penalty_rule": rule.init(), "gap": unknown},
    )

  def update(state: TrainState, batch: StepBatch):
    if settings.rl_only_base == "resync":
      state = _resynchronise(state, settings.resync_every)
    penalty, rule_state = rule.update(
      state.extra["penalty_rule"], state.extra["gap"]
    )
    proposal = propose(state, batch, penalty)
    cosines = {
      f"bilevel/cosine_with_{name}": problem.agreement(
        proposal.gradients["adapter"],
        other(state, batch, penalty).gradients["adapter"],
      ).cosine
      for name, other in zip(settings.compare_with, others, strict=True)
    }
    # How far the joint policy is from the RL-only one, in reward.
    gap = -proposal.metrics.get("bilevel/cooperative_gain", jnp.nan)
    state, norms = contract.advance(
      proposal.state, optimizers, proposal.gradients
    )
    extra = {"penalty_rule": rule_state, "gap": jnp.float32(gap)}
    return dataclasses.replace(state, extra=extra), {
      "bilevel/penalty": penalty,
      **proposal.metrics,
      **cosines,
      **norms,
    }

  plan = contract.Plan(
    rollouts=True,
    demonstrations=True,
    old_logprobs=hypergradients.leaves_the_old_base(settings, wanted),
  )
  return contract.Method(
    trains_adapter=True,
    init=init,
    plan=lambda step: plan,
    update=update,
    # Joint SFT and RL, and RL once more at the RL-only base.
    gradients=contract.Gradients(sft=1, rl=2)
    if wanted == ("penalty",)
    else None,
  )


def _penalty_rule(
  settings: config.Method, total_updates: int
) -> schedules.Penalty:
  start, end = settings.penalty, settings.penalty_end
  if settings.penalty_schedule == "adaptive":
    return schedules.adaptive(
      start=start, target=settings.penalty_target, rate=settings.penalty_rate
    )
  end = start if end is None else end
  along = {
    "linear": optax.linear_schedule(0.0, 1.0, total_updates),
    "cosine": lambda count: (
      1 - optax.cosine_decay_schedule(1.0, total_updates)(count)
    ),
  }[settings.penalty_schedule]
  return schedules.scheduled(lambda count: start + (end - start) * along(count))


def _check_optimizers(
  wanted: tuple[str, ...], ingredients: contract.Ingredients
) -> None:
  if hypergradients.DIFFERENTIATES_OPTIMIZER.isdisjoint(wanted):
    return
  for name in ("base", "rl_only_base"):
    unrolled.check_differentiable(
      ingredients.optimizers[name], f"the optimiser of {name}"
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
