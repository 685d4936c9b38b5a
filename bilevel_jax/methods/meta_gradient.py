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

import jax.numpy as jnp
import optax

from bilevel_jax import config
from bilevel_jax.bilevel import problem
from bilevel_jax.methods import contract, updates


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns the method that learns mu, SFT's weight, by meta-gradients.

  Raises:
    ConfigError: bounds that do not hold the first mu.
  """
  options = settings.meta_gradient
  if not options.lowest <= options.start <= options.highest:
    raise config.ConfigError(
      "method.meta_gradient.start must be from lowest to highest, got "
      f"{options.start} for {options.lowest} to {options.highest}"
    )

  def weigh(state, sft, rl, agreement):
    del agreement
    # The RL loss falls along a direction that its gradient points along.
    gain = problem.agreement(state.extra["direction"], rl.base).cosine
    mu = jnp.clip(
      state.extra["mu"] + options.rate * gain, options.lowest, options.highest
    )
    extra = {
      "mu": mu.astype(jnp.float32),
      "direction": optax.tree.sub(sft.base, rl.base),
    }
    return updates.Mix(sft_weight=mu, rl_weight=1 - mu, extra=extra)

  return updates.joint_method(
    ingredients,
    weigh,
    extra=lambda base: {
      "mu": jnp.float32(options.start),
      "direction": optax.tree.zeros_like(base),
    },
  )
