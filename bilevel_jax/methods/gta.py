"""GTA: SFT where it does not oppose RL (guess, think, answer; 2509.12108).

A completion is a guess, a thought and an answer. SFT learns to guess from the
label, RL to think and answer, and never the guess; of two gradients that point
apart, RL's alone is taken.
"""

import jax.numpy as jnp

from bilevel_jax import config
from bilevel_jax.methods import contract, updates


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns grad L_RL + weight grad L_SFT, or grad L_RL alone.

  Alone where the cosine of the two, over the whole tree, is below 0: a rule on
  gradients that is not the gradient of any one loss. Up to `guess_end` a text
  is a guess: a demonstration's is all that SFT sees, a sample's is what RL does
  not. Ours: the guess of SFT is the demonstration's, after the same prompt,
  since the paper does not say which tokens of a sample the label is compared
  with; what has no `guess_end` has no guess.

  Raises:
    ConfigError: a `guess_end` without a character.
  """
  weight = settings.gta.sft_weight
  if settings.gta.guess_end == "":
    raise config.ConfigError(
      "method.gta.guess_end must have a character, or be None, got ''"
    )

  def weigh(state, sft, rl, agreement):
    del state, sft, rl
    return updates.Mix(jnp.where(agreement.cosine < 0, 0.0, weight), 1.0)

  joint = updates.joint_method(ingredients, weigh)
  return joint._replace(lead=settings.gta.guess_end)
