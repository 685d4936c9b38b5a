"""Updates by a weighted SFT loss and by RL, and what the weights do to L_RL.

    base  <- base - lr [ (1 - penalty) sum_i s_i dL_i + penalty dL_RL ] / m
    m       = max(1 - penalty, penalty)

L_i is a demonstration's share of the SFT loss, or a token's, and s_i its
weight. m makes the larger coefficient 1: with penalty 1/2 and weights of 1 a
step is `mixed`'s, clipped or not. Only `one_step` serves tokens, too.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from bilevel_jax.bilevel import (
  cooperative,
  data_weights,
  evidence,
  implicit,
  problem,
  unrolled,
)
from bilevel_jax.bilevel import penalty as penalty_form
from bilevel_jax.methods import contract, diagnostics, estimators, terms
from bilevel_jax.objectives import token_weights
from bilevel_jax.types import Metrics, StepBatch, TokenBatch, TrainState, Tree


class Moved(NamedTuple):
  """What an update did, and what it says of its weights."""

  state: TrainState
  norms: Metrics
  kept: dict[str, Tree]  # of the state's `extra`
  derivatives: jax.Array  # [B], or [B, T], of L_RL by the weights
  rl: problem.Gradient
  sft: problem.Gradient
  agreement: problem.Agreement


Move: TypeAlias = Callable[
  [TrainState, StepBatch, jax.Array, terms.InContext, jax.Array], Moved
]
"""(state, batch, penalty, the weights as a context, whether any group of the
rollouts has a signal) -> Moved."""


class Form(NamedTuple):
  """How an update is made, with what it keeps from one to the next."""

  init: Callable[[Tree], dict[str, Tree]]
  """base -> what the form keeps in `extra`."""
  move: Move
  gradients: contract.Gradients | None = contract.Gradients()
  """As `contract.Needs` has them."""


def first_order(
  options: Any,
  setup: contract.Setup,
  per: Literal["demonstration", "token"] = "demonstration",
) -> Form:
  """Returns the form whose derivatives go through its own optimiser step.

  It keeps a mean of the RL gradient over steps, `direction`, and reads the
  steps that it is a mean of in `evidence`.

  Args:
    per: what has a weight. Tokens' are then multiplied by a number that makes
      their mean over the batch 1, weighted as the loss weighs them.
  """
  optimizer = setup.optimizers["base"]
  rl_gradient = setup.gradient(setup.rl_loss())
  plain = setup.sft_loss(token_weight=token_weights.one)
  decay = options.direction_decay

  def move(state, batch, penalty, weigh, says) -> Moved:
    base, states = state.base, state.optimizer_states
    rl = rl_gradient(base, None, batch.rl)
    rl, base = jax.lax.optimization_barrier((rl, base))
    sft = setup.gradient(
      setup.sft_loss(context=weigh, with_entropy=per == "token")
    )(base, None, batch.sft)
    shape = len(batch.sft.tokens)
    if per == "token":
      shape = batch.sft.tokens.shape
      sft = _normalised(sft, weigh, batch.sft)
    total = penalty_form.mix(penalty, sft.by_lower, rl.by_lower)
    total = _scaled(penalty, total)
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

    # What a token counts is a constant, also a little away from the base.
    held = weighted(batch.sft, sft.aux["token_weights"])

    def losses(base: Tree) -> jax.Array:
      """Each one's share of the loss, which is linear in their weights."""
      return jax.grad(lambda s: plain(base, None, weighted(held, s))[0])(
        jnp.ones(shape)
      )

    found = data_weights.along(
      losses,
      base,
      direction,
      mixed_product=estimators.mixed_product(options, "one_step"),
    )
    agreement = problem.agreement(sft.by_lower, rl.by_lower)
    state, norms = contract.advance(state, {"base": optimizer}, {"base": total})
    return Moved(state, norms, {"direction": mean}, found, rl, sft, agreement)

  return Form(lambda base: {"direction": optax.tree.zeros_like(base)}, move)


def by_estimator(options: Any, setup: contract.Setup) -> Form:
  """Returns the form whose derivatives one of `bilevel`'s estimators gives.

  The demonstrations' weights are its upper variables.
  """
  optimizer = setup.optimizers["base"]
  rl_gradient, sft_gradient = map(
    setup.gradient, _levels(setup, setup.rl_loss(surrogate=options.surrogate))
  )
  plain = setup.sft_loss()
  product = estimators.mixed_product(options, options.form)
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

  def move(state, batch, penalty, weigh, says) -> Moved:
    base = state.base
    _, aux = plain(base, None, batch.sft)
    s = jnp.ravel(weigh(aux["logprobs"], None, batch.sft))
    joint = cooperative.joint(sft_gradient, rl_gradient, penalty)

    def both(lower: Tree, upper: Tree, batch: Any) -> problem.Gradient:
      *gradients, aux = joint(lower, upper, batch)
      return problem.Gradient(*_scaled(penalty, gradients), aux=aux)

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
    return Moved(
      state,
      norms,
      {},
      found.gradient,
      problem.Gradient(None, None, before.lower_loss, before.lower),
      problem.Gradient(None, None, before.upper_loss, aux),
      before.agreement,
    )

  return Form(lambda base: {}, move, gradients=None)


def swapped_penalty(options: Any, setup: contract.Setup) -> Form:
  """Returns the penalty form with the two losses' roles swapped.

      F = (1 - p) L_RL(base) + p [ L_s(base) - L_s(sft_only_base) ]
      dF/ds_i = p [ L_i(base) - L_i(sft_only_base) ]

  L_s = sum_i s_i L_i, p = 1 - penalty, so that the base moves as in the other
  forms. It keeps `sft_only_base`, which L_s alone moves, with its optimiser's
  state. Source: SEAL, arXiv 2410.07471.
  """
  optimizer = setup.optimizers["base"]
  plain, levels = setup.sft_loss(), _levels(setup, setup.rl_loss())

  def init(base: Tree) -> dict[str, Tree]:
    copy = jax.tree.map(jnp.copy, base)
    return {
      "sft_only_base": copy,
      "sft_only_optimizer": optimizer.init(copy),
    }

  def move(state, batch, penalty, weigh, says) -> Moved:
    base, copy = state.base, state.extra["sft_only_base"]
    _, aux = plain(base, None, batch.sft)
    s = jnp.ravel(weigh(aux["logprobs"], None, batch.sft))
    found = penalty_form.terms(
      levels, base, copy, s, batch.rl, batch.sft, gradient=setup.gradient
    )
    moves = penalty_form.combine(found, 1 - penalty)
    step, own = optimizer.update(
      moves.lower_only, state.extra["sft_only_optimizer"], copy
    )
    kept = {
      "sft_only_base": optax.apply_updates(copy, step),
      "sft_only_optimizer": own,
    }
    rl, sft = found.of_upper, found.of_lower
    agreement = problem.agreement(sft.by_lower, rl.by_lower)
    lower = _scaled(penalty, moves.lower)
    state, norms = contract.advance(state, {"base": optimizer}, {"base": lower})
    return Moved(state, norms, kept, moves.upper, rl, sft, agreement)

  return Form(init, move, gradients=contract.Gradients(sft=2))


FORMS: dict[str, Callable[[Any, contract.Setup], Form]] = {
  "one_step": first_order,
  "unrolled": by_estimator,
  "implicit": by_estimator,
  "penalty": swapped_penalty,
}


def rules(options: Any, forms: Sequence[str]) -> Iterator[str]:
  """Yields a sentence for each rule of all weighted upper levels broken.

  Args:
    forms: hypergradients that this one can have.
  """
  upper = f"upper={options.variables}"
  if options.form not in forms or options.compare_with:
    yield (
      f"method.bridge.{upper} takes one hypergradient, of {', '.join(forms)}, "
      f"got {', '.join(options.wanted)}"
    )
  defaults = {"rl_only_base": "persistent", "gain_weight": 1.0}
  for name, value in defaults.items():
    if getattr(options, name) != value:
      yield (
        f"method.bridge.{name} must be {value} with {upper}, which has no "
        f"RL-only copy, got {getattr(options, name)}"
      )
  if options.freeze_adapted:
    yield (
      "method.bridge.freeze_adapted holds what an adapter is added to, and "
      f"{upper} has none: it must be False, got True"
    )
  if options.penalty_schedule == "adaptive":
    yield (
      "method.bridge.penalty_schedule=adaptive follows the cooperative gain, "
      f"which {upper} does not measure"
    )


def method(
  by: Form,
  init: Callable[[Tree, Tree | None], TrainState],
  update: Callable[[TrainState, StepBatch], contract.Updated],
  *,
  old_logprobs: bool = False,
  ranking: Callable[[TrainState], evidence.Ranking] | None = None,
) -> contract.Method:
  """Returns the method of a weighted upper level.

  Args:
    init: as a method has it.
    update: as a method has it.
    old_logprobs: whether it wants the log-probs of before a step's update.
    ranking: as a method has it.
  """
  plan = contract.Plan(
    rollouts=True, demonstrations=True, old_logprobs=old_logprobs
  )
  return contract.Method(
    needs=contract.Needs(
      demonstrations="required",
      gradients=by.gradients,
      trees=5,  # two gradients; the mean, the direction, the moved base
    ),
    init=init,
    plan=lambda step, scalars: plan,
    update=update,
    ranking=ranking,
  )


def updated(
  moved: Moved,
  batch: StepBatch,
  penalty: jax.Array,
  extra: dict[str, Tree],
  metrics: Metrics,
) -> contract.Updated:
  """Returns what the method returns of an update.

  Args:
    penalty: [], that of the update.
    extra: of the state, beside what the form keeps.
    metrics: to log, beside those that all forms have.
  """
  assert batch.rl is not None
  losses = {"sft/loss": moved.sft.loss, "rl/loss": moved.rl.loss}
  return contract.Updated(
    dataclasses.replace(moved.state, extra=extra | moved.kept),
    {
      "bilevel/penalty": penalty,
      **losses,
      **diagnostics.gradient_metrics(
        moved.agreement, sft_weight=1 - penalty, rl_weight=penalty
      ),
      **diagnostics.rollout_metrics(batch.rl, moved.rl.aux),
      **moved.norms,
      **metrics,
    },
    must_be_finite=(losses, moved.norms, moved.derivatives),
  )


def dependence(options: Any) -> float:
  """Returns the variance of a mean of steps, over that of independent ones.

  `one_step` measures against a decaying mean of gradients: its steps have
  errors in common.
  """
  decay = options.direction_decay if options.form == "one_step" else 0.0
  return (1 + decay) / (1 - decay)


def mean_one(weights: jax.Array, batch: TokenBatch) -> jax.Array:
  """Returns [], what makes the mean of the tokens' weights 1.

  Args:
    weights: [B, T], above 0.
    batch: whose own weights are those of the mean.
  """
  total = jnp.sum(batch.weights * weights)
  return jnp.sum(batch.weights) / jnp.where(total > 0, total, 1)


def says(batch: StepBatch) -> jax.Array:
  """Returns [] bool, whether any group's rewards have a signal."""
  rl = batch.rl
  assert rl is not None
  return jnp.any((rl.advantages != 0) & (rl.weights > 0))


def weighted(batch: TokenBatch, s: jax.Array) -> TokenBatch:
  """Returns a batch whose tokens' weights are multiplied by s.

  Args:
    s: [B], or [B, T].
  """
  s = s.reshape(len(s), -1)
  return dataclasses.replace(batch, weights=batch.weights * s)


def _scaled(penalty: jax.Array, tree: Any) -> Any:
  """What is weighed by 1 - penalty and by penalty, with the larger one at 1."""
  return optax.tree.scale(1 / jnp.maximum(1 - penalty, penalty), tree)


def _levels(
  setup: contract.Setup, rl_loss: problem.Objective
) -> problem.Problem:
  """L_RL above, the SFT loss by the rows' weights below."""
  plain = setup.sft_loss()
  return problem.Problem(
    upper=lambda base, s, batch: rl_loss(base, None, batch),
    lower=lambda base, s, batch: plain(base, None, weighted(batch, s)),
  )


def _normalised(
  sft: problem.Gradient, weigh: terms.InContext, batch: TokenBatch
) -> problem.Gradient:
  """The gradient with the mean of the tokens' weights over the batch at 1."""
  aux = sft.aux
  scale = mean_one(weigh(aux["logprobs"], aux["entropies"], batch), batch)
  return sft._replace(
    by_lower=optax.tree.scale(scale, sft.by_lower), loss=scale * sft.loss
  )
