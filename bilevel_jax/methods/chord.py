"""CHORD: (1 - mu) L_RL + mu L_SFT with a schedule of mu (arXiv 2508.11408)."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import optax

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, updates
from bilevel_jax.objectives import token_weights


@dataclasses.dataclass(frozen=True)
class Options:
  peak: float = setting(
    0.1, "mu after the warm-up, SFT's weight", at_least=0, at_most=1
  )
  valley: float = setting(
    0.1, "mu after the decay, SFT's weight", at_least=0, at_most=1
  )
  warmup_updates: int = setting(
    0, "updates in which mu rises from 0 to the peak, linearly", at_least=0
  )
  decay_updates: int | None = setting(
    None,
    "updates in which mu falls from the peak to the valley; default: all that "
    "follow the warm-up",
    at_least=1,
  )
  token_weight: Literal["phi", "sft"] = setting(
    "phi",
    "weight of a demonstration's token: p (1 - p), or what sft.token_weight "
    "says",
  )


def rules(options: Options, settings: Any) -> Iterator[str]:
  """Yields a sentence for each rule that the settings break."""
  total = settings.total_updates
  if options.warmup_updates >= total:
    yield (
      f"method.chord.warmup_updates must be below the {total} updates of the "
      f"run, got {options.warmup_updates}"
    )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns CHORD, with phi = p (1 - p) on demonstration tokens or without."""
  mu = schedule(options, setup.total_updates)

  def weigh(found: updates.Found) -> updates.Mix:
    now = mu(found.state.updates)
    return updates.Mix(sft_weight=now, rl_weight=1 - now)

  phi = options.token_weight == "phi"
  return updates.joint(
    setup,
    weigh,
    objective=setup.sft_loss(token_weight=token_weights.uncertain)
    if phi
    else None,
  )


def schedule(options: Options, total_updates: int) -> optax.Schedule:
  """Returns mu by updates: 0 to the peak linearly, to the valley by a cosine.

  Update i of W warm-up updates has peak * (i + 1) / W.
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
