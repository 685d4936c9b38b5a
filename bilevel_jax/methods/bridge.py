"""BRIDGE: joint SFT and RL as a bilevel problem (arXiv 2509.06948).

One update in the penalty form, every gradient at the old parameters, as
losses to minimise:

    base          <- base - lr [ (1 - penalty) dL_SFT + penalty dL_RL ]
    rl_only_base  <- rl_only_base - lr dL_RL(rl_only_base, adapter)
    adapter       <- adapter - lr' [ (1 - penalty) dL_SFT
                       + penalty (dL_RL - dL_RL(rl_only_base, adapter)) ]

The rollouts were sampled from (base, adapter) and are shared: the RL-only
copy is scored on the same tokens. What the paper leaves open is a setting,
the default first; the forms of the hypergradient are in
`methods.hypergradients`, the arithmetic in `bilevel`.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from bilevel_jax.bilevel import penalty as penalty_form
from bilevel_jax.bilevel import problem, schedules, unrolled
from bilevel_jax.fields import setting
from bilevel_jax.methods import (
  contract,
  demonstration_weights,
  estimators,
  hypergradients,
  token_weight,
)
from bilevel_jax.models import attention, presets
from bilevel_jax.types import StepBatch, TrainState, Tree

WEIGHTED = {
  "demonstrations": demonstration_weights,
  "token_weight": token_weight,
}
"""Upper levels that weigh the SFT loss, in place of an adapter."""


@dataclasses.dataclass(frozen=True)
class Options(
  demonstration_weights.Options, token_weight.Options, estimators.Options
):
  penalty: float = setting(
    0.5,
    "lambda: the base descends (1 - lambda) L_SFT + lambda L_RL; also the "
    "weight of the cooperative gain",
    at_least=0,
    at_most=1,
  )
  penalty_end: float | None = setting(
    None, "lambda at the last step; default: constant", at_least=0, at_most=1
  )
  penalty_schedule: Literal["linear", "cosine", "adaptive"] = setting(
    "linear", "way from penalty to penalty_end; adaptive: to hold a gap"
  )
  penalty_target: float = setting(
    0.02,
    "reward that joint training may trail RL alone by, with "
    "penalty_schedule=adaptive",
    above=0,
  )
  penalty_rate: float = setting(
    0.1,
    "largest change of lambda's logit in an update, with "
    "penalty_schedule=adaptive",
    above=0,
  )
  resync_every: int = setting(
    10, "updates between resets of the RL-only base, with resync", at_least=1
  )
  rl_only_optimizer: Literal["same", "sgd"] = setting(
    "same", "optimiser of the RL-only base: like the base's, or plain SGD"
  )


def rules(options: Options, settings: Any) -> Iterator[str]:
  """Yields a sentence for each rule that the settings break."""
  form, copy = options.form, options.rl_only_base
  if options.rank_only and options.variables != "demonstrations":
    yield (
      "method.bridge.rank_only learns weights of demonstrations: "
      f"method.bridge.upper must be demonstrations, got {options.upper}"
    )
  if options.variables in WEIGHTED:
    yield from WEIGHTED[options.variables].rules(options, settings)
    yield from _rules_of_second_order(options, settings)
    return
  if options.gain_weight != 1 and form != "penalty":
    yield (
      "method.bridge.gain_weight must be 1 unless method.bridge.hypergradient "
      f"is penalty, got {options.gain_weight} and {form}"
    )
  forms = hypergradients.FORMS
  for name in options.compare_with:
    if name not in forms or name == form:
      yield (
        "method.bridge.compare_with must name hypergradients other than "
        f"{form}, of {', '.join(forms)}, got {name!r}"
      )
  if "one_step" in options.wanted and copy != "one_step":
    yield (
      "the hypergradient one_step starts both copies at the base: "
      f"method.bridge.rl_only_base must be one_step, got {copy}"
    )
  if "implicit" in options.wanted and copy == "one_step":
    yield (
      "the hypergradient implicit needs an RL-only base of its own: "
      "method.bridge.rl_only_base must be persistent or resync, got one_step"
    )
  if options.penalty_schedule == "adaptive":
    if form == "one_step":
      yield (
        "method.bridge.penalty_schedule=adaptive follows the cooperative gain, "
        "which the hypergradient one_step does not measure"
      )
    low, high = schedules.BOUNDS
    if not low <= options.penalty <= high:
      yield (
        f"method.bridge.penalty must be from {low} to {high} where it is "
        f"adaptive, got {options.penalty}"
      )
  targets = settings.adapter.targets
  if options.freeze_adapted and settings.model.train == "adapter":
    yield (
      "method.bridge.freeze_adapted must be False with model.train=adapter, "
      "whose base is frozen: adapter.upper_targets says which matrices the "
      "upper level has"
    )
    return
  if options.freeze_adapted and set(targets) >= set(presets.PROJECTIONS):
    yield (
      "method.bridge.freeze_adapted must leave the base a matrix to train: "
      "adapter.targets must leave out one or more of "
      f"{', '.join(presets.PROJECTIONS)}, got {', '.join(targets)}"
    )
  yield from _rules_of_second_order(options, settings)


def _rules_of_second_order(options: Options, settings: Any) -> Iterator[str]:
  exact = [
    name
    for name in options.second_order
    if estimators.mixed_product(options, name) == "exact"
  ]
  kernel, rl = settings.model.attention, settings.rl
  if exact and kernel not in ("auto", *attention.SECOND_ORDER):
    yield (
      f"the hypergradient {exact[0]} needs second derivatives, and "
      f"model.attention={kernel} has first ones only: take chunked, or "
      "method.bridge.mixed_product=finite_difference"
    )
  if not options.rl_twice or options.surrogate != "dice":
    return
  if rl.kl_estimate == "k2":
    yield (
      "method.bridge.surrogate=dice differentiates the mean of the KL's "
      "estimate, and k2's is not the KL: rl.kl_estimate must be k3 or reward, "
      "got k2"
    )
  if rl.dual_clip is not None:
    yield (
      "rl.dual_clip must be None with method.bridge.surrogate=dice, which has "
      f"no clip, got {rl.dual_clip}"
    )
  if (rl.ratio, rl.clip) != ("token", "objective"):
    yield (
      "method.bridge.surrogate=dice has no ratio and no clip: rl.ratio must be "
      "token and rl.clip objective, or the surrogate fixed_sample, got "
      f"{rl.ratio} and {rl.clip}"
    )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns BRIDGE.

  Raises:
    ConfigError: an optimiser that the hypergradient cannot differentiate.
  """
  through = not estimators.DIFFERENTIATES_OPTIMIZER.isdisjoint(options.wanted)
  if through:
    _check_differentiable(setup.optimizers, "base")
  rule = _penalty_rule(options, setup.total_updates)
  if options.variables in WEIGHTED:
    return WEIGHTED[options.variables].build(options, setup, rule)
  plain = options.rl_only_optimizer == "sgd"
  optimizers = {
    **setup.optimizers,
    "rl_only_base": setup.base_optimizer(
      None, setup.total_updates, plain=plain
    ),
  }
  if through:
    _check_differentiable(optimizers, "rl_only_base")
  twice = bool(options.second_order)
  levels = hypergradients.Levels(
    problem.Problem(
      upper=setup.sft_loss(),
      lower=setup.rl_loss(
        surrogate=options.surrogate if twice else "fixed_sample"
      ),
    ),
    setup.gradient,
    optimizers,
  )
  if options.freeze_adapted:
    levels = hypergradients.frozen(levels, setup.adapter_targets)
  propose, *others = [
    hypergradients.FORMS[name](options, levels) for name in options.wanted
  ]

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    trees = {"base": base, "adapter": adapter}
    if options.rl_only_base != "one_step":
      # A copy of its own: the two are donated to the update separately.
      trees["rl_only_base"] = jax.tree.map(jnp.copy, base)
    unknown = jnp.full((), jnp.nan, jnp.float32)  # no update has measured it
    extra = {"penalty_rule": rule.init(), "gap": unknown}
    return contract.new_state(optimizers, extra=extra, **trees)

  def update(state: TrainState, batch: StepBatch):
    if options.rl_only_base == "resync":
      state = _resynchronise(state, options.resync_every)
    penalty, rule_state = rule.update(
      state.extra["penalty_rule"], state.extra["gap"]
    )
    proposal = propose(state, batch, penalty)
    cosines = {
      f"bilevel/cosine_with_{name}": problem.agreement(
        proposal.gradients["adapter"],
        other(state, batch, penalty).gradients["adapter"],
      ).cosine
      for name, other in zip(options.compare_with, others, strict=True)
    }
    found = proposal.metrics
    # How far the joint policy is from the RL-only one, in reward.
    gap = -found.get("bilevel/cooperative_gain", jnp.nan)
    # Of a step of which nothing could be scored it is not known.
    gap = jnp.where(jnp.any(batch.rl.scored > 0), gap, jnp.nan)
    state, norms = contract.advance(
      proposal.state, levels.optimizers, proposal.gradients
    )
    extra = {"penalty_rule": rule_state, "gap": jnp.float32(gap)}
    return contract.Updated(
      dataclasses.replace(state, extra=extra),
      {"bilevel/penalty": penalty, **found, **cosines, **norms},
      must_be_finite=(
        norms,
        [found[f"{part}/loss"] for part in ("sft", "rl")],
        [found[f"{part}/gradient_norm"] for part in ("sft", "rl")],
      ),
    )

  plan = contract.Plan(
    rollouts=True,
    demonstrations=True,
    old_logprobs=estimators.leaves_the_old_base(options),
  )
  # Joint SFT and RL, and RL once more at the RL-only base.
  counted = contract.Gradients(sft=1, rl=2)
  return contract.Method(
    needs=contract.Needs(
      demonstrations="sampled",
      adapter=True,
      gradients=counted if options.wanted == ("penalty",) else None,
      # A second derivative has a direction and a product.
      trees=4 + 2 * twice,
    ),
    init=init,
    plan=lambda step, scalars: plan,
    update=update,
  )


def _check_differentiable(optimizers: Mapping[str, Any], name: str) -> None:
  # Muon treats a model's matrices, known by their name, unlike all else.
  example = {"layers": {"kernel": jnp.ones((1, 3, 3))}, "norm": jnp.ones(3)}
  unrolled.check_differentiable(
    optimizers[name], f"the optimiser of {name}", example
  )


def _penalty_rule(options: Options, total_updates: int) -> schedules.Penalty:
  start, end = options.penalty, options.penalty_end
  if options.penalty_schedule == "adaptive":
    return schedules.adaptive(
      start=start, target=options.penalty_target, rate=options.penalty_rate
    )
  end = start if end is None else end
  along = {
    "linear": optax.linear_schedule(0.0, 1.0, total_updates),
    "cosine": lambda count: (
      1 - optax.cosine_decay_schedule(1.0, total_updates)(count)
    ),
  }[options.penalty_schedule]
  return schedules.scheduled(lambda count: start + (end - start) * along(count))


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
