"""The paper's baseline of alternation: steps of RL, then steps of SFT."""

import dataclasses
from collections.abc import Mapping

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, updates


@dataclasses.dataclass(frozen=True)
class Options(updates.SFTRate):
  rl_steps: int = setting(1, "steps of RL in a row", at_least=1)
  sft_steps: int = setting(1, "steps of SFT after those of RL", at_least=1)


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns RL and SFT in turns, each with its own optimiser and its state."""
  round_steps = options.rl_steps + options.sft_steps
  init, update = updates.by_turns(
    setup,
    options,
    rl_updates=setup.total_updates * options.rl_steps // round_steps,
    sft_updates=setup.total_updates * options.sft_steps // round_steps,
  )

  def plan(step: int, scalars: Mapping[str, float]) -> contract.Plan:
    by_rl = step % round_steps < options.rl_steps
    return contract.Plan(rollouts=by_rl, demonstrations=not by_rl)

  return contract.Method(
    needs=contract.Needs(demonstrations="required"),
    init=init,
    plan=plan,
    update=update,
  )
