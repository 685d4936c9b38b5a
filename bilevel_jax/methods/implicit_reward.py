"""SFT at a small learning rate, then DPO (arXiv 2507.00018)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from bilevel_jax import config
from bilevel_jax.methods import contract, diagnostics, sft_then_rl, updates
from bilevel_jax.objectives import preferences
from bilevel_jax.types import StepBatch, TrainState


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns SFT, then direct preference optimisation on the policy's samples.

  SFT is a special case of learning an implicit reward that its optimum does
  not hold close to the start; a smaller learning rate does
  (`method.implicit_reward.sft_rate`). The second stage prefers every right
  sample of a question to every wrong one; its reference is what SFT made.
  Ours: the pairs are fresh rollouts; the stages are those of
  `method.sft_then_rl`; the paper's losses from other f-divergences are left
  out.

  Raises:
    ConfigError: several updates of a step's rollouts, which would part pairs.
  """
  options = settings.implicit_reward
  if ingredients.updates_per_step != 1:
    raise config.ConfigError(
      f"method {settings.name} needs a question's samples in one update: "
      "rl.updates_per_rollout and rl.passes_per_rollout must be 1, got "
      f"{ingredients.updates_per_step} updates"
    )

  def preferred(optimizer: optax.GradientTransformation) -> updates.Update:
    return _preferred(ingredients, optimizer, beta=options.beta)

  # The reference is needed whether or not there is a KL term.
  ingredients = ingredients._replace(
    reference_dtype=ingredients.reference_dtype or jnp.float32
  )
  stages = dataclasses.replace(settings.sft_then_rl, reference="after_sft")
  method = sft_then_rl.build(
    dataclasses.replace(settings, sft_then_rl=stages),
    ingredients,
    sft_rate=options.sft_rate,
    second=preferred,
  )

  def plan(step: int) -> contract.Plan:
    stage = method.plan(step)
    return stage._replace(old_logprobs=stage.rollouts)

  return method._replace(plan=plan, every_rollout=True)


def _preferred(
  ingredients: contract.Ingredients,
  optimizer: optax.GradientTransformation,
  *,
  beta: float,
) -> updates.Update:
  """Returns base <- base - lr grad DPO, in micro-batches of any rows.

  The loss couples rows through their log-ratios alone, which are known before
  the update. So its gradient is that of a sum over rows: the loss's slope in
  a row's log-ratio, times grad log pi of the row.
  """
  gradient = ingredients.gradient(ingredients.problem.lower)

  def update(state: TrainState, batch: StepBatch):
    rows = batch.rl
    counted = jnp.float32(rows.weights > 0)
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
      state, {"base": optimizer}, {"base": rl.base}
    )
    return state, {
      "rl/loss": loss,
      **diagnostics.rollout_metrics(rows, rl.aux),
      **norms,
    }

  return update
