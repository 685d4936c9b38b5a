"""BRIDGE's upper level as weights of demonstrations, learned from the reward.

    base     <- base - lr [ (1 - penalty) sum_i s_i dL_i + penalty dL_RL ] / m
    weights  by what L_i's part of that step does to L_RL

L_i is demonstration i's share of the SFT loss and s_i its weight, 1 at the
start; m = max(1 - penalty, penalty). An adapter's upper level is absorbed by
the base (docs/hypergradients.md, the identity); these weights are not. There is
no RL-only copy: the cooperative gain's derivative by s does not contain it. How
derivatives move weights is `bilevel.evidence`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from bilevel_jax import errors
from bilevel_jax.bilevel import evidence, schedules
from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, estimators, weighted_updates
from bilevel_jax.types import Metrics, StepBatch, TokenBatch, TrainState, Tree

_LEVELS = ("features", "group", "demonstration")
_NEVER_WORSE = 1e-2  # nats per token, so that a certain solution has a log


@dataclasses.dataclass(frozen=True)
class Options:
  per: tuple[str, ...] = setting(
    ("features", "demonstration"),
    "what a demonstration's weight depends on, with upper=demonstrations: any "
    "of features (its log-prob per token when first seen, and its length), "
    "group (data.demonstration_group) and demonstration (itself)",
  )
  pooled_rate: float = setting(
    20.0,
    "how far a weight's logit moves by the effect of features and group, in "
    "units of a demonstration's usual effect",
    at_least=0,
  )
  own_rate: float = setting(
    8.0,
    "how far a weight's logit moves by a demonstration's own effect, in the "
    "same units",
    at_least=0,
  )
  weight_bound: float = setting(
    2.0, "largest weight that a demonstration may have", above=1
  )
  weight_doubt: float = setting(
    4.0,
    "squared standard errors that an effect of features and group, or of "
    "token_weight's exponents, is taken to be of noise alone: the higher, the "
    "longer weights stay at 1",
    at_least=0,
  )
  rank_only: bool = setting(
    False,
    "learn the weights and leave the base as it is, so that demonstrations are "
    "ranked for the policy that the run starts from",
  )
  direction_decay: float = setting(
    0.5,
    "decay of the mean over steps of the RL gradient that demonstrations and "
    "tokens are measured against; 0: this step's alone",
    at_least=0,
    below=1,
  )


def rules(options: Any, settings: Any) -> Iterator[str]:
  """Yields a sentence for each rule that upper=demonstrations breaks."""
  yield from weighted_updates.rules(options, tuple(weighted_updates.FORMS))
  if options.rank_only and options.form == "penalty":
    yield (
      "method.bridge.rank_only leaves a policy as it is, and penalty compares "
      "two that move: its hypergradient must be one_step, unrolled or "
      "implicit, got penalty"
    )
  unknown = [name for name in options.per if name not in _LEVELS]
  if unknown or not options.per or len(set(options.per)) < len(options.per):
    yield (
      f"method.bridge.per must name some of {', '.join(_LEVELS)}, each once, "
      f"got {options.per}"
    )
  if "group" in options.per and settings.data.demonstration_group is None:
    yield (
      "method.bridge.per=group needs data.demonstration_group to name the "
      "field that holds a demonstration's group, got None"
    )


def build(
  options: Any, setup: contract.Setup, schedule: schedules.Penalty
) -> contract.Method:
  """Returns BRIDGE with a weight for each demonstration.

  Args:
    schedule: of the penalty, which weighs RL against SFT.

  Raises:
    ConfigError: weights by group of a single group.
  """
  groups = setup.demonstration_groups
  if "group" in options.per and len(groups.names) == 1:
    raise errors.ConfigError(
      "method.bridge.per=group needs demonstrations of two groups or more, got "
      f"one, {groups.names[0]!r}"
    )
  form = evidence.Form(
    pooled_rate=options.pooled_rate,
    own_rate=options.own_rate if "demonstration" in options.per else 0.0,
    doubt=options.weight_doubt,
    dependence=weighted_updates.dependence(options),
    bound=options.weight_bound,
  )
  own_groups = len(groups.names) if "group" in options.per else 0
  count = 2 * ("features" in options.per) + own_groups

  def features(logprobs: jax.Array, batch: TokenBatch) -> jax.Array:
    """[B, P]: log of the loss per token and of the length; the group."""
    mass = jnp.sum(batch.weights, axis=1)
    loss = -jnp.sum(batch.weights * logprobs, axis=1)
    tokens = jnp.sum(batch.weights > 0, axis=1)
    found = []
    if "features" in options.per:
      found += [
        jnp.log(loss / jnp.where(mass > 0, mass, 1) + _NEVER_WORSE)[:, None],
        jnp.log(jnp.maximum(tokens, 1))[:, None],
      ]
    if own_groups:
      members = jnp.asarray(groups.members)[batch.ids]
      found.append(jax.nn.one_hot(members, own_groups))
    return jnp.concatenate(found or [jnp.zeros((len(mass), 0))], axis=1)

  by = weighted_updates.FORMS[options.form](options, setup)

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    extra = {
      "penalty_rule": schedule.init(),
      "evidence": evidence.empty(setup.demonstrations, count),
      **by.init(base),
    }
    return contract.new_state(setup.optimizers, extra=extra, base=base)

  def update(state: TrainState, batch: StepBatch):
    known = state.extra["evidence"]
    assert batch.sft is not None
    penalty, rule_state = schedule.update(
      state.extra["penalty_rule"], jnp.float32(jnp.nan)
    )
    ids = batch.sft.ids
    mass = jnp.sum(batch.sft.weights, axis=1)
    says = weighted_updates.says(batch)

    def weigh(logprobs, entropies, part):
      found = features(logprobs, part)
      return evidence.weights(known, form, part.ids, found)[:, None]

    moved = by.move(state, batch, penalty, weigh, says)
    if options.rank_only:
      still = dataclasses.replace(moved.state, base=state.base)
      moved = moved._replace(state=still)
    learned = evidence.observe(
      known,
      form,
      ids,
      moved.derivatives / jnp.where(mass > 0, mass, 1),
      features(moved.sft.aux["logprobs"], batch.sft),
      real=mass > 0,
      says=says,
    )
    extra = {"penalty_rule": rule_state, "evidence": learned}
    return weighted_updates.updated(
      moved, batch, penalty, extra, _weight_metrics(learned, groups)
    )

  return weighted_updates.method(
    by,
    init,
    update,
    old_logprobs=options.rl_twice and estimators.leaves_the_old_base(options),
    ranking=lambda state: evidence.ranking(state.extra["evidence"]),
  )


def _weight_metrics(
  found: evidence.Evidence, groups: contract.DemonstrationGroups
) -> Metrics:
  """How weight is spread over the demonstrations that have been seen."""
  known = found.known
  count = jnp.maximum(jnp.sum(known), 1)
  weights = jnp.where(known, found.weights, 0.0)
  total = jnp.sum(weights)
  metrics = {
    "demonstrations/effective_number": total**2
    / jnp.maximum(jnp.sum(weights**2), 1e-20),
    "demonstrations/weight": total / count,
  }
  members = jnp.asarray(groups.members)
  for number, name in enumerate(groups.names):
    of_group = known & (members == number)
    metrics[f"demonstrations/weight_of_{name}"] = jnp.sum(
      jnp.where(of_group, weights, 0.0)
    ) / jnp.maximum(jnp.sum(of_group), 1)
  return metrics
