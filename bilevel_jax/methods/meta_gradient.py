"""A mixing coefficient that is learned from what mixing did to the reward.

Inspired by AMFT (arXiv 2508.06944, withdrawn by its authors; nothing of its
results is used). With L = (1 - mu) L_RL + mu L_SFT and one SGD step,

    d base' / d mu = -lr (g_SFT - g_RL),
    d L_RL(base') / d mu = -lr <grad L_RL(base'), g_SFT - g_RL>.

Ours: L_RL(base') is measured by the next update's own rollouts, which are
fresh and on policy, so the meta-gradient costs a tree of memory and no
gradient. mu moves by `rate` times the cosine in place of the inner product,
whose size (lr times two norms) would leave mu where it began or throw it to a
bound. The optimiser's preconditioner is left out of d base' / d mu. AMFT's
entropy rule is left out too: its text and its equation disagree in sign.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import optax

from bilevel_jax.bilevel import problem
from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, updates


@dataclasses.dataclass(frozen=True)
class Options:
  start: float = setting(
    0.5, "first mu, the weight of SFT", at_least=0, at_most=1
  )
  lowest: float = setting(0.05, "lower bound of mu", at_least=0, at_most=1)
  highest: float = setting(0.95, "upper bound of mu", at_least=0, at_most=1)
  rate: float = setting(
    0.02, "largest change of mu in an update: that at a cosine of 1", at_least=0
  )


def rules(options: Options, settings: Any) -> Iterator[str]:
  """Yields a sentence for each rule that the settings break."""
  if not options.lowest <= options.start <= options.highest:
    yield (
      "method.meta_gradient.start must be from lowest to highest, got "
      f"{options.start} for {options.lowest} to {options.highest}"
    )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns the method that learns mu, SFT's weight, by meta-gradients."""

  def weigh(found: updates.Found) -> updates.Mix:
    before, sft, rl = found.state.extra, found.sft, found.rl
    # The RL loss falls along a direction that its gradient points along.
    gain = problem.agreement(before["direction"], rl.by_lower).cosine
    mu = jnp.clip(
      before["mu"] + options.rate * gain, options.lowest, options.highest
    )
    extra = {
      "mu": mu.astype(jnp.float32),
      "direction": optax.tree.sub(sft.by_lower, rl.by_lower),
    }
    return updates.Mix(sft_weight=mu, rl_weight=1 - mu, extra=extra)

  return updates.joint(
    setup,
    weigh,
    extra=lambda base: {
      "mu": jnp.float32(options.start),
      "direction": optax.tree.zeros_like(base),
    },
  )
