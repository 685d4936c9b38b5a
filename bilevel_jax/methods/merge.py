"""RL and SFT apart, from the same start; at the end their changes are added."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import optax

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, updates
from bilevel_jax.types import StepBatch, TrainState, Tree


@dataclasses.dataclass(frozen=True)
class Options(updates.SFTRate):
  sft_share: float = setting(
    0.5, "share of the steps that are of SFT", at_least=0, at_most=1
  )
  rl_weight: float = setting(0.5, "weight of what RL changed")
  sft_weight: float = setting(0.5, "weight of what SFT changed")


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns start + a (after RL - start) + b (after SFT - start).

  RL comes first and SFT takes the steps that are left, from the start again;
  a and b are `method.merge.rl_weight` and `sft_weight`. Until the last step
  is done, what is evaluated is the part in training. A recipe of arXiv
  2507.07562 by linear task vectors; that both parts are trained in one
  run, on one budget of steps, is ours.
  """
  sft_steps = round(options.sft_share * setup.steps)
  sft_updates = sft_steps * setup.updates_per_step
  rl_optimizer = setup.base_optimizer(None, setup.total_updates - sft_updates)
  sft_optimizer = setup.base_optimizer(options.sft_learning_rate, sft_updates)
  by_rl = updates.descent(setup, "rl", optimizer=rl_optimizer)
  by_sft = updates.descent(setup, "sft", optimizer=sft_optimizer)
  rest = 1 - options.rl_weight - options.sft_weight

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    # Before SFT the start; then all that is added to b times SFT's part.
    kept = jax.tree.map(jnp.copy, base)
    extra = {"sft_started": jnp.zeros((), bool), "kept": kept}
    return contract.new_state({"base": rl_optimizer}, base=base, extra=extra)

  def update(state: TrainState, batch: StepBatch):
    if batch.rl is not None:
      return by_rl(state, batch)
    if batch.sft is None:
      return contract.Updated(merged(state), {}, must_be_finite=())
    started, kept = state.extra["sft_started"], state.extra["kept"]
    choose = functools.partial(optax.tree.where, started)
    partly = jax.tree.map(
      lambda rl, start: options.rl_weight * rl + rest * start, state.base, kept
    )
    return by_sft(
      dataclasses.replace(
        state,
        base=choose(state.base, kept),
        optimizer_states={
          "base": choose(
            state.optimizer_states["base"], sft_optimizer.init(kept)
          )
        },
        extra={"sft_started": jnp.ones((), bool), "kept": choose(kept, partly)},
      ),
      batch,
    )

  def merged(state: TrainState) -> TrainState:
    started = state.extra["sft_started"]

    def one(base, kept):
      without_sft = options.rl_weight * base + (1 - options.rl_weight) * kept
      return jnp.where(started, options.sft_weight * base + kept, without_sft)

    base = jax.tree.map(one, state.base, state.extra["kept"])
    return dataclasses.replace(state, base=base)

  def plan(step: int, scalars: Mapping[str, float]) -> contract.Plan:
    first = step < setup.steps - sft_steps
    return contract.Plan(rollouts=first, demonstrations=not first)

  def batches(host: contract.Host) -> Iterator[StepBatch]:
    yield from contract.on_policy(host)
    if host.step + 1 == host.steps:
      yield StepBatch(rl=None, sft=None)  # the two changes are added up

  return contract.Method(
    needs=contract.Needs(
      rollouts=sft_steps < setup.steps,
      demonstrations="required" if sft_steps else None,
    ),
    init=init,
    plan=plan,
    update=update,
    batches=batches,
  )
