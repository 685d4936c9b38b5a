"""BRIDGE's upper level as weights of demonstrations, learned from the reward.

    base     <- base - lr [ (1 - penalty) sum_i s_i dL_i + penalty dL_RL ]
    weights  by what L_i's part of that step does to L_RL

L_i is demonstration i's share of the SFT loss and s_i its weight, 1 at the
start. An adapter's upper level is absorbed by the base (docs/hypergradients.md,
the identity); these weights are not. There is no RL-only copy: the cooperative
gain's derivative by s does not contain it. How derivatives move weights is
`bilevel.evidence`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel_jax import errors
from bilevel_jax.bilevel import (
  cooperative,
  data_weights,
  evidence,
  implicit,
  problem,
  schedules,
  unrolled,
)
from bilevel_jax.bilevel import penalty as penalty_form
from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, diagnostics, estimators
from bilevel_jax.types import (
  Metrics,
  StepBatch,
  TokenBatch,
  TrainState,
  Tree,
)

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
    "squared standard errors that an effect of features and group is taken to "
    "be of noise alone: the higher, the longer weights stay at 1",
    at_least=0,
  )
  rank_only: bool = setting(
    False,
    "learn the weights and leave the base as it is, so that demonstrations are "
    "ranked for the policy that the run starts from",
  )
  direction_decay: float = setting(
    0.5,
    "decay of the mean over steps of the RL gradient that demonstrations are "
    "measured against; 0: this step's alone",
    at_least=0,
    below=1,
  )


def rules(options: Any, settings: Any) -> Iterator[str]:
  """Yields a sentence for each rule that upper=demonstrations breaks."""
  form = options.form
  if form == "penalty" or options.compare_with:
    yield (
      "method.bridge.upper=demonstrations takes one hypergradient, one_step, "
      f"unrolled or implicit, got {', '.join(options.wanted)}"
    )
  defaults = {"rl_only_base": "persistent", "gain_weight": 1.0}
  for name, value in defaults.items():
    if getattr(options, name) != value:
      yield (
        f"method.bridge.{name} must be {value} with upper=demonstrations, "
        f"which has no RL-only copy, got {getattr(options, name)}"
      )
  if options.freeze_adapted:
    yield (
      "method.bridge.freeze_adapted holds what an adapter is added to, and "
      "upper=demonstrations has none: it must be False, got True"
    )
  if options.penalty_schedule == "adaptive":
    yield (
      "method.bridge.penalty_schedule=adaptive follows the cooperative gain, "
      "which upper=demonstrations does not measure"
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


class _Moved(NamedTuple):
  """What an update did, and what it says of its demonstrations."""

  state: TrainState
  norms: Metrics
  direction: Tree | None  # the mean RL gradient, where the form keeps one
  derivatives: jax.Array  # [B], of L_RL by the rows' weights
  rl: problem.Gradient
  rows: Tree  # aux of the SFT loss
  agreement: problem.Agreement
  sft_loss: jax.Array


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

  move = (_one_step if options.form == "one_step" else _by_estimator)(
    options, setup
  )

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    extra = {
      "penalty_rule": schedule.init(),
      "evidence": evidence.nothing(setup.demonstrations, count),
    }
    if options.form == "one_step":
      extra["direction"] = optax.tree.zeros_like(base)
    return contract.new_state(setup.optimizers, extra=extra, base=base)

  def update(state: TrainState, batch: StepBatch):
    known = state.extra["evidence"]
    assert batch.rl is not None
    assert batch.sft is not None
    penalty, rule_state = schedule.update(
      state.extra["penalty_rule"], jnp.float32(jnp.nan)
    )
    ids = batch.sft.ids
    mass = jnp.sum(batch.sft.weights, axis=1)
    says = jnp.any((batch.rl.advantages != 0) & (batch.rl.weights > 0))

    def weigh(logprobs, entropies, part):
      found = features(logprobs, part)
      return evidence.weights(known, form, part.ids, found)[:, None]

    moved = move(state, batch, penalty, weigh, says)
    learned = evidence.observe(
      known,
      form,
      ids,
      moved.derivatives / jnp.where(mass > 0, mass, 1),
      features(moved.rows["logprobs"], batch.sft),
      real=mass > 0,
      says=says,
    )
    extra = {"penalty_rule": rule_state, "evidence": learned}
    if moved.direction is not None:
      extra["direction"] = moved.direction
    losses = {"sft/loss": moved.sft_loss, "rl/loss": moved.rl.loss}
    return contract.Updated(
      dataclasses.replace(
        moved.state,
        base=state.base if options.rank_only else moved.state.base,
        extra=extra,
      ),
      {
        "bilevel/penalty": penalty,
        **losses,
        **diagnostics.gradient_metrics(
          moved.agreement, sft_weight=1 - penalty, rl_weight=penalty
        ),
        **diagnostics.rollout_metrics(batch.rl, moved.rl.aux),
        **moved.norms,
        **_weight_metrics(learned, groups),
      },
      must_be_finite=(losses, moved.norms, moved.derivatives),
    )

  plan = contract.Plan(
    rollouts=True,
    demonstrations=True,
    old_logprobs=options.rl_twice and estimators.leaves_the_old_base(options),
  )
  return contract.Method(
    needs=contract.Needs(
      demonstrations="required",
      gradients=contract.Gradients() if options.form == "one_step" else None,
      trees=5,  # two gradients; the mean, the direction, the moved base
    ),
    init=init,
    plan=lambda step, scalars: plan,
    update=update,
    ranking=lambda state: evidence.ranking(state.extra["evidence"]),
  )


def _one_step(options: Any, setup: contract.Setup):
  """Returns the update whose derivatives go through its own optimiser step."""
  optimizer = setup.optimizers["base"]
  rl_gradient = setup.gradient(setup.rl_loss())
  plain = setup.sft_loss()
  decay = options.direction_decay

  def move(state, batch, penalty, weigh, says) -> _Moved:
    base, states = state.base, state.optimizer_states
    rl = rl_gradient(base, None, batch.rl)
    rl, base = jax.lax.optimization_barrier((rl, base))
    sft = setup.gradient(setup.sft_loss(context=weigh))(base, None, batch.sft)
    total = penalty_form.mix(penalty, sft.by_lower, rl.by_lower)
    mean = jax.tree.map(
      lambda m, g: jnp.where(says, decay * m + (1 - decay) * g, m),
      state.extra["direction"],
      rl.by_lower,
    )
    steps = state.extra["evidence"].steps + says
    unbiased = optax.tree.scale(1 / (1 - decay ** jnp.maximum(steps, 1)), mean)
    direction = data_weights.direction(
      optimizer, states["base"], base, total, unbiased
    )

    def losses(base: Tree) -> jax.Array:
      """[B], each row's share of the loss, which is linear in their weights."""
      return jax.grad(lambda s: plain(base, None, weighted(batch.sft, s))[0])(
        jnp.ones(len(batch.sft.tokens))
      )

    found = data_weights.along(
      losses,
      base,
      direction,
      mixed_product=estimators.mixed_product(options, "one_step"),
    )
    agreement = problem.agreement(sft.by_lower, rl.by_lower)
    state, norms = contract.advance(state, {"base": optimizer}, {"base": total})
    return _Moved(state, norms, mean, found, rl, sft.aux, agreement, sft.loss)

  return move


def _by_estimator(options: Any, setup: contract.Setup):
  """Returns the update whose derivatives one of `bilevel`'s estimators gives.

  The rows' weights are its upper variables.
  """
  optimizer = setup.optimizers["base"]
  rl_loss = setup.rl_loss(surrogate=options.surrogate)
  rl_gradient = setup.gradient(
    lambda base, s, batch: rl_loss(base, None, batch)
  )
  plain = setup.sft_loss()
  product = estimators.mixed_product(options, options.form)
  sft_gradient = setup.gradient(
    lambda base, s, batch: plain(base, None, weighted(batch, s))
  )
  estimate = (
    unrolled.unrolled(
      optimizer,
      steps=options.inner_steps,
      mixed_product=product,
    )
    if options.form == "unrolled"
    else implicit.implicit(
      estimators.linear_solver(options),
      damping=options.damping,
      mixed_product=product,
    )
  )

  def move(state, batch, penalty, weigh, says) -> _Moved:
    base = state.base
    _, aux = plain(base, None, batch.sft)
    s = jnp.ravel(weigh(aux["logprobs"], None, batch.sft))
    both = cooperative.joint(sft_gradient, rl_gradient, penalty)
    found = estimate(
      rl_gradient,
      both,
      base,
      s,
      batch.rl,
      (batch.sft, batch.rl),
      state.optimizer_states["base"],
    )
    before, gradients = found.lower_aux, {}
    if options.form == "unrolled":
      before = jax.tree.map(lambda x: x[0], before)
      state = estimators.moved(state, "base", found)
    else:
      gradients["base"] = both(base, s, (batch.sft, batch.rl)).by_lower
    state, norms = contract.advance(state, {"base": optimizer}, gradients)
    rl = problem.Gradient(None, None, before.lower_loss, before.lower)
    return _Moved(
      state,
      norms,
      None,
      found.gradient,
      rl,
      aux,
      before.agreement,
      before.upper_loss,
    )

  return move


def weighted(batch: TokenBatch, s: jax.Array) -> TokenBatch:
  """Returns a batch whose rows' weights are multiplied by s.

  Args:
    s: [B].
  """
  return dataclasses.replace(batch, weights=batch.weights * s[:, None])


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
