"""CHORD: (1 - mu) L_RL + mu L_SFT with a schedule of mu (arXiv 2508.11408)."""

import optax

from bilevel_jax import config
from bilevel_jax.methods import contract, updates
from bilevel_jax.objectives import token_weights


def build(
  settings: config.Method, ingredients: contract.Ingredients
) -> contract.Method:
  """Returns CHORD, with phi = p (1 - p) on demonstration tokens or without.

  Raises:
    ConfigError: a warm-up that leaves nothing of the run.
  """
  options, total = settings.chord, ingredients.total_updates
  if options.warmup_updates >= total:
    raise config.ConfigError(
      f"method.chord.warmup_updates must be below the {total} updates of the "
      f"run, got {options.warmup_updates}"
    )
  mu = schedule(options, total)

  def weigh(state, sft, rl, agreement):
    del sft, rl, agreement
    now = mu(state.updates)
    return updates.Mix(sft_weight=now, rl_weight=1 - now)

  phi = options.token_weight == "phi"
  return updates.joint_method(
    ingredients,
    weigh,
    objective=ingredients.supervised(token_weight=token_weights.uncertain)
    if phi
    else None,
  )


def schedule(
  options: config.comparators.Chord, total_updates: int
) -> optax.Schedule:
  """Returns mu by updates: 0 to the peak linearly, to the valley by a cosine.

  Update i of W warm-up updates has peak * (i + 1) / W.

  Args:
    options: peak, valley, warmup_updates, decay_updates.
    total_updates: of the run.
  """
  peak, warmup = options.peak, options.warmup_updates
  cosine = optax.cosine_decay_schedule(
    1.0, options.decay_updates or total_updates - warmup
  )
  fall = lambda count: options.valley + (peak - options.valley) * cosine(count)
  if warmup == 0:
    return fall
  rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
  return optax.join_schedules([rise, fall], [warmup])
