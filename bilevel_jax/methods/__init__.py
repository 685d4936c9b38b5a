"""Every way of combining SFT and RL, under one contract."""

from collections.abc import Callable

from bilevel_jax.config import own_code
from bilevel_jax.methods import (
  alternating,
  bridge,
  chord,
  contract,
  data_mix,
  dft,
  grpo,
  gta,
  hpt,
  implicit_reward,
  interleaved,
  kdrl,
  luffy,
  merge,
  meta_gradient,
  mixed,
  non_decoupling,
  pear,
  prefix_rft,
  progressive,
  relift,
  sasr,
  sft,
  sft_then_rl,
  shuffle,
  srft,
  staged,
  trapo,
  uft,
)

METHODS = {
  "alternating": alternating.build,
  "bridge": bridge.build,
  "chord": chord.build,
  "data_mix": data_mix.build,
  "dft": dft.build,
  "grpo": grpo.build,
  "gta": gta.build,
  "hpt": hpt.build,
  "implicit_reward": implicit_reward.build,
  "interleaved": interleaved.build,
  "kdrl": kdrl.build,
  "luffy": luffy.build,
  "merge": merge.build,
  "meta_gradient": meta_gradient.build,
  "mixed": mixed.build,
  "non_decoupling": non_decoupling.build,
  "pear": pear.build,
  "prefix_rft": prefix_rft.build,
  "progressive": progressive.build,
  "relift": relift.build,
  "sasr": sasr.build,
  "sft": sft.build,
  "sft_then_rl": sft_then_rl.build,
  "shuffle": shuffle.build,
  "srft": srft.build,
  "staged": staged.build,
  "trapo": trapo.build,
  "uft": uft.build,
}


def find(name: str) -> Callable[..., contract.Method]:
  """Returns the function (settings.method, ingredients) -> Method.

  Args:
    name: a key of METHODS, or a dotted path to a function of your own.

  Raises:
    ConfigError: neither, or one that cannot be imported.
  """
  if name in METHODS:
    return METHODS[name]
  return own_code.function(name, "method.name", METHODS)
