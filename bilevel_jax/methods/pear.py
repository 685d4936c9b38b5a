"""PEAR: SFT that prepares for RL, then RL (arXiv 2602.01058)."""

from bilevel_jax import config
from bilevel_jax.methods import contract, sft_then_rl
from bilevel_jax.objectives import continuation


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns SFT weighed by how the policy would go on, then RL.

  A demonstration's token weighs as much as the policy, rather than what wrote
  the demonstration, would make what follows it (`objectives.continuation`),
  beside what `sft.token_weight` says. The stages are those of
  `method.sft_then_rl`, whose `sft_share` of 1 is the first one alone.
  """
  options = settings.pear

  def weights(logprobs, entropies, batch):
    del entropies
    return continuation.weights(
      logprobs,
      batch.expert_logprobs,
      batch.weights,
      batch.segment_ids,
      form=options.form,
      gamma=options.gamma,
      block=options.block,
      ratio_bounds=(options.lowest_ratio, options.highest_ratio),
      bounds=(options.lowest, options.highest),
    )

  return sft_then_rl.build(
    settings, ingredients, objective=ingredients.supervised(context=weights)
  )._replace(expert="demonstrations")
