"""SFT, then RL in stages of growing length (arXiv 2506.13284)."""

import dataclasses

import jax
import jax.numpy as jnp

from bilevel_jax import config
from bilevel_jax.methods import contract, sft_then_rl, updates
from bilevel_jax.rollout import routing
from bilevel_jax.types import StepBatch, TrainState, Tree


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns AceReason's plan, stages of RL without a KL after SFT.

  A stage has its share of the longest completion; samples that were cut for
  their length are left out in all but the last `unfiltered_stages`; questions
  of which too many samples are right are left out (`highest_accuracy`). The
  temperature follows the entropy that it gives, towards `entropy`: this is
  its one state, and is in the checkpoint. Ours: the stages are as long as
  each other; a question's accuracy is that of the step's own samples, where
  the paper filters before a stage; the controller, where the paper chose the
  temperature by hand. SFT's share of the steps is `method.sft_then_rl`'s.

  Raises:
    ConfigError: stages of which not all have all settings.
  """
  options = settings.staged
  stages = len(options.lengths)
  if not stages or stages != len(options.highest_accuracy):
    raise config.ConfigError(
      "method.staged.highest_accuracy must have one for each of "
      f"method.staged.lengths, of which there must be one at least, got "
      f"{len(options.highest_accuracy)} for {stages}"
    )
  # The controller reads the entropy, whether or not it is logged.
  objective = ingredients.reinforced(with_entropy=True)
  inner = sft_then_rl.build(
    settings,
    ingredients._replace(reference_dtype=None),  # there is no KL
    second=lambda optimizer: updates.reinforced(
      ingredients, objective=objective, optimizer=optimizer
    ),
  )
  steps = ingredients.total_updates // ingredients.updates_per_step
  sft_steps = sft_then_rl.sft_steps(settings.sft_then_rl, ingredients)

  def stage(step: int) -> int:
    return (step - sft_steps) * stages // max(steps - sft_steps, 1)

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    state = inner.init(base, adapter)
    start = {"temperature": jnp.float32(options.temperature)}
    return dataclasses.replace(state, extra=state.extra | start)

  def update(state: TrainState, batch: StepBatch):
    state, metrics = inner.update(state, batch)
    if batch.rl is None:
      return state, metrics
    used = state.extra["temperature"]
    moved = controlled(
      used,
      metrics["rl/entropy"],
      target=options.entropy,
      rate=options.rate,
      lowest=options.lowest_temperature,
      highest=options.highest_temperature,
    )
    counted = jnp.any(jnp.asarray(batch.rl.weights) > 0)
    extra = state.extra | {"temperature": jnp.where(counted, moved, used)}
    return dataclasses.replace(state, extra=extra), {
      **metrics,
      "rollout/temperature": used,
    }

  def plan(step: int) -> contract.Plan:
    planned = inner.plan(step)
    if not planned.rollouts:
      return planned
    return planned._replace(length_share=options.lengths[stage(step)])

  def narrow(state: TrainState, plan: contract.Plan) -> contract.Plan:
    if not plan.rollouts:
      return plan
    return plan._replace(temperature=float(state.extra["temperature"]))

  def route(groups: routing.Groups) -> routing.Route:
    now, kept = stage(groups.step), groups.scored
    if now < stages - options.unfiltered_stages:
      kept = kept & ~groups.truncated
    advantages, _ = ingredients.advantages(groups.rewards, groups.scored)
    right = (groups.correct & groups.scored).sum(axis=1)
    accuracy = right / groups.scored.sum(axis=1).clip(min=1)
    hard = accuracy <= options.highest_accuracy[now]
    return routing.of_rollouts(advantages)._replace(
      rollouts=kept & hard[:, None]
    )

  return inner._replace(
    init=init,
    update=update,
    plan=plan,
    narrow=narrow,
    route=route,
    reference=lambda state: None,
    every_rollout=True,  # their entropy is the controller's
  )


def controlled(
  temperature: jax.Array,
  entropy: jax.typing.ArrayLike,
  *,
  target: float,
  rate: float,
  lowest: float,
  highest: float,
) -> jax.Array:
  """Returns the next temperature: times exp(rate (target - entropy)).

  Args:
    temperature: scalar, of the samples.
    entropy: nats a token, of the policy at that temperature.
    target: nats a token.
    rate: per nat.
    lowest: bound of the temperature.
    highest: bound of the temperature.
  """
  moved = temperature * jnp.exp(rate * jnp.subtract(target, entropy))
  return jnp.clip(moved, lowest, highest).astype(jnp.float32)
