"""SFT at a small learning rate, then DPO (arXiv 2507.00018)."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, diagnostics, sft_then_rl, updates
from bilevel_jax.objectives import preferences
from bilevel_jax.types import RLBatch, StepBatch, TrainState


@dataclasses.dataclass(frozen=True)
class Options(sft_then_rl.Stages):
  sft_rate: float = setting(
    0.25, "what SFT's learning rate is multiplied by", above=0
  )
  beta: float = setting(
    0.1, "scale of DPO's log-ratios: how firmly it prefers", above=0
  )


def rules(options: Options, settings: Any) -> Iterator[str]:
  """Yields a sentence for each rule that the settings break."""
  if settings.updates_per_step != 1:
    yield (
      "the method implicit_reward needs a question's samples in one update: "
      "rl.updates_per_rollout and rl.passes_per_rollout must be 1, got "
      f"{settings.rl.updates_per_rollout} and {settings.rl.passes_per_rollout}"
    )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns SFT, then direct preference optimisation on the policy's samples.

  SFT is a special case of learning an implicit reward that its optimum does
  not hold close to the start; a smaller learning rate does
  (`method.implicit_reward.sft_rate`). The second stage prefers every right
  sample of a question to every wrong one; its reference is what SFT made.
  Ours: the pairs are fresh rollouts; the stages are those of `sft_then_rl`; the
  paper's losses from other f-divergences are left out.
  """

  def preferred(optimizer: optax.GradientTransformation) -> updates.Update:
    return _preferred(setup, optimizer, beta=options.beta)

  # The reference is needed whether or not there is a KL term.
  setup = setup._replace(reference_dtype=setup.reference_dtype or jnp.float32)
  method = sft_then_rl.stages(
    options, setup, sft_rate=options.sft_rate, second=preferred
  )

  def plan(step: int, scalars: Mapping[str, float]) -> contract.Plan:
    stage = method.plan(step, scalars)
    return stage._replace(old_logprobs=stage.rollouts)

  needs = method.needs._replace(every_rollout=True)
  return method._replace(plan=plan, needs=needs)


def _preferred(
  setup: contract.Setup, optimizer: optax.GradientTransformation, *, beta: float
) -> updates.Update:
  """Returns base <- base - lr grad DPO, in micro-batches of any rows.

  The loss couples rows through their log-ratios alone, which are known before
  the update. So its gradient is that of a sum over rows: the loss's slope in
  a row's log-ratio, times grad log pi of the row.
  """
  gradient = setup.gradient(setup.rl_loss())

  def update(state: TrainState, batch: StepBatch[RLBatch, None]):
    rows = batch.rl
    counted = jnp.float32(rows.weights > 0)
    # By the plan and by `reference_dtype`.
    assert rows.old_logprobs is not None
    assert rows.ref_logprobs is not None
    log_ratios = jnp.sum(
      counted * (rows.old_logprobs - rows.ref_logprobs), axis=1
    )
    loss, slopes = jax.value_and_grad(preferences.direct)(
      log_ratios, rows.correct, rows.scored, rows.questions, beta=beta
    )
    # On policy, the RL loss without its KL and its correction is
    # -sum(advantages * log pi), to first order.
    plain = dataclasses.replace(
      rows,
      weights=counted,
      advantages=-slopes[:, None] * counted,
      old_logprobs=None,
      ref_logprobs=None,
      sampler_logprobs=None,
    )
    rl = gradient(state.base, None, plain)
    state, norms = contract.advance(
      state, {"base": optimizer}, {"base": rl.by_lower}
    )
    metrics = {"rl/loss": loss, **norms}
    return contract.Updated(
      state,
      metrics | diagnostics.rollout_metrics(rows, rl.aux),
      must_be_finite=metrics,
    )

  return update
