"""The paper's baseline of one weighted loss: L_RL + weight L_SFT.

With `method.mixed.adapter` the base and the adapter both descend it: BRIDGE
with one level in place of two, and no RL-only copy.
"""

import dataclasses

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, updates


@dataclasses.dataclass(frozen=True)
class Options:
  sft_weight: float = setting(
    1.0, "weight of the SFT loss, beside 1 for the RL loss", at_least=0
  )
  adapter: bool = setting(
    False,
    "whether an adapter is trained beside the base, on the same loss, as a "
    "control for BRIDGE's",
  )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns the method that descends L_RL + `sft_weight` L_SFT."""
  mix = updates.Mix(sft_weight=options.sft_weight, rl_weight=1.0)
  return updates.joint(setup, lambda found: mix, adapter=options.adapter)
