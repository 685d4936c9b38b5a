"""BRIDGE's upper level as one weight function of tokens, learned by reward.

    base       <- base - lr [ (1 - penalty) dL_w + penalty dL_RL ] / m
    m           = max(1 - penalty, penalty)
    L_w         = -sum_t w_t omega(t) log p(t)
    omega(t)    = c p^a (1 - p)^b e^(d H)
    a, b, d    by what each token's part of that step does to L_RL

w_t is a token's weight in the SFT loss, p its probability and H the entropy in
nats where it stands, both under the current base and constants. c makes the
mean of omega over the batch's tokens 1, weighted by w, so that the gradient's
norm stays about the same and only tokens' shares change. a, b, d are 0 at the
start: plain SFT. DFT is a = 1 (`methods.dft`), CHORD's weight a = b = 1. How
derivatives move the exponents is `bilevel.slopes`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from bilevel_jax.bilevel import schedules, slopes
from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, weighted_updates
from bilevel_jax.types import StepBatch, TrainState, Tree

NAMES = ("probability", "improbability", "entropy")
"""What a, b and d are exponents of."""
LOW, HIGH = (0.0, 0.0, -1.0), (2.0, 2.0, 1.0)
"""Bounds of a, b and d."""
_CERTAIN = 1e-6  # least 1 - p, so that a certain token has a log


@dataclasses.dataclass(frozen=True)
class Options:
  token_rate: float = setting(
    2.0,
    "with upper=token_weight, the exponent at which many steps of one opinion "
    "put a variable, before its bounds",
    at_least=0,
  )


def rules(options: Any, settings: Any) -> Iterator[str]:
  """Yields a sentence for each rule that upper=token_weight breaks."""
  yield from weighted_updates.rules(options, ("one_step",))
  if settings.sft.token_weight != "one":
    yield (
      "sft.token_weight must be one with method.bridge.upper=token_weight, "
      f"which learns it, got {settings.sft.token_weight}"
    )


def omega(
  exponents: jax.Array, logprobs: jax.Array, entropies: jax.Array
) -> jax.Array:
  """Returns p^a (1 - p)^b e^(d H) of tokens, [B, T], without c.

  Args:
    exponents: [3], a, b and d.
    logprobs: [B, T], log p.
    entropies: [B, T], in nats.
  """
  a, b, d = exponents
  improbable = jnp.maximum(-jnp.expm1(logprobs), _CERTAIN)
  return jnp.exp(a * logprobs + b * jnp.log(improbable) + d * entropies)


def build(
  options: Any, setup: contract.Setup, schedule: schedules.Penalty
) -> contract.Method:
  """Returns BRIDGE with a learned weight function of tokens.

  Args:
    schedule: of the penalty, which weighs RL against SFT.
  """
  by = weighted_updates.first_order(options, setup, per="token")

  doubt = options.weight_doubt * weighted_updates.dependence(options)

  def exponents(known: slopes.Slopes) -> jax.Array:
    found = slopes.values(known, rate=options.token_rate, doubt=doubt)
    return jnp.clip(found, jnp.array(LOW), jnp.array(HIGH))

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    extra = {
      "penalty_rule": schedule.init(),
      "evidence": slopes.empty(len(NAMES)),
      **by.init(base),
    }
    return contract.new_state(setup.optimizers, extra=extra, base=base)

  def update(state: TrainState, batch: StepBatch):
    known = state.extra["evidence"]
    assert batch.sft is not None
    sft = batch.sft
    penalty, rule_state = schedule.update(
      state.extra["penalty_rule"], jnp.float32(jnp.nan)
    )
    now = exponents(known)
    says = weighted_updates.says(batch)
    moved = by.move(
      state,
      batch,
      penalty,
      lambda logprobs, entropies, part: omega(now, logprobs, entropies),
      says,
    )
    aux = moved.sft.aux

    def effect(exponents: jax.Array) -> jax.Array:
      """L_RL to first order in the tokens' weights."""
      found = omega(exponents, aux["logprobs"], aux["entropies"])
      scale = weighted_updates.mean_one(found, sft)
      return jnp.sum(moved.derivatives * scale * found)

    learned = slopes.observe(known, jax.grad(effect)(now), says)
    extra = {"penalty_rule": rule_state, "evidence": learned}
    after = dict(zip(NAMES, exponents(learned), strict=True))
    metrics = {f"token_weight/{name}": value for name, value in after.items()}
    return weighted_updates.updated(moved, batch, penalty, extra, metrics)

  return weighted_updates.method(by, init, update)
