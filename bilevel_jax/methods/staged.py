"""SFT, then RL in stages of growing length (arXiv 2506.13284)."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, routing, sft_then_rl, updates
from bilevel_jax.types import StepBatch, TrainState, Tree


@dataclasses.dataclass(frozen=True)
class Options(sft_then_rl.Stages):
  lengths: tuple[float, ...] = setting(
    (0.5, 0.75, 1.0),
    "share of rollout.max_new_tokens that a sample may have, for each stage of "
    "RL",
  )
  highest_accuracy: tuple[float, ...] = setting(
    (1.0, 1.0, 0.375),
    "share of right samples up to which a question counts, for each stage of "
    "RL",
  )
  unfiltered_stages: int = setting(
    1, "last stages in which truncated samples count", at_least=0
  )
  entropy: float = setting(
    0.3, "entropy that the temperature aims at, nats a token", above=0
  )
  temperature: float = setting(1.0, "temperature of the first samples", above=0)
  rate: float = setting(
    0.5,
    "change of the temperature's logarithm per nat of entropy that is missing",
    at_least=0,
  )
  lowest_temperature: float = setting(
    0.6, "lower bound of the temperature", above=0
  )
  highest_temperature: float = setting(
    1.2, "upper bound of the temperature", above=0
  )


def rules(options: Options, settings: Any) -> Iterator[str]:
  """Yields a sentence for each rule that the settings break."""
  stages = len(options.lengths)
  if not stages or stages != len(options.highest_accuracy):
    yield (
      "method.staged.highest_accuracy must have one for each of "
      f"method.staged.lengths, of which there must be one at least, got "
      f"{len(options.highest_accuracy)} for {stages}"
    )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns AceReason's plan, stages of RL without a KL after SFT.

  A stage has its share of the longest completion; samples that were cut for
  their length are left out in all but the last `unfiltered_stages`; questions
  of which too many samples are right are left out (`highest_accuracy`). The
  temperature follows the entropy that it gives, towards `entropy`: this is
  its one state, and is in the checkpoint. Ours: the stages are as long as
  each other; a question's accuracy is that of the step's own samples, where
  the paper filters before a stage; the controller, where the paper chose the
  temperature by hand.
  """
  stages = len(options.lengths)
  # The controller reads the entropy, whether or not it is logged.
  objective = setup.rl_loss(with_entropy=True)
  inner = sft_then_rl.stages(
    options,
    setup._replace(reference_dtype=None),  # there is no KL
    second=lambda optimizer: updates.descent(
      setup, "rl", objective=objective, optimizer=optimizer
    ),
  )
  sft_steps = sft_then_rl.sft_steps(options, setup)

  def stage(step: int) -> int:
    of = max(setup.steps - sft_steps, 1)
    return (step - sft_steps) * stages // of

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    state = inner.init(base, adapter)
    start = {"temperature": jnp.float32(options.temperature)}
    return dataclasses.replace(state, extra=state.extra | start)

  def update(state: TrainState, batch: StepBatch):
    done = inner.update(state, batch)
    if batch.rl is None:
      return done
    used = done.state.extra["temperature"]
    moved = controlled(
      used,
      done.metrics["rl/entropy"],
      target=options.entropy,
      rate=options.rate,
      lowest=options.lowest_temperature,
      highest=options.highest_temperature,
    )
    counted = jnp.any(batch.rl.weights > 0)
    temperature = {"temperature": jnp.where(counted, moved, used)}
    extra = done.state.extra | temperature
    return done._replace(
      state=dataclasses.replace(done.state, extra=extra),
      metrics={**done.metrics, "rollout/temperature": used},
    )

  def plan(step: int, scalars: Mapping[str, float]) -> contract.Plan:
    planned = inner.plan(step, scalars)
    if not planned.rollouts:
      return planned
    return planned._replace(
      length_share=options.lengths[stage(step)],
      temperature=scalars["temperature"],
    )

  def route(groups: contract.Groups, host: contract.Host) -> routing.Route:
    now, kept = stage(host.step), groups.scored
    if now < stages - options.unfiltered_stages:
      kept = kept & ~groups.truncated
    advantages, _ = setup.advantages(*groups.outcomes)
    hard = groups.accuracy <= options.highest_accuracy[now]
    return routing.Route(advantages, rollouts=kept & hard[:, None])

  return inner._replace(
    init=init,
    update=update,
    plan=plan,
    batches=routing.routed(route),
    # Every rollout is read: the entropy of all is the controller's.
    needs=inner.needs._replace(reference=None, every_rollout=True),
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
  """
  moved = temperature * jnp.exp(rate * jnp.subtract(target, entropy))
  return jnp.clip(moved, lowest, highest).astype(jnp.float32)
