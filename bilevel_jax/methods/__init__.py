"""Every way of combining SFT and RL, under one contract."""

from bilevel_jax.methods import (
  alternating,
  bridge,
  chord,
  dft,
  grpo,
  gta,
  hpt,
  luffy,
  meta_gradient,
  mixed,
  sasr,
  sft,
  sft_then_rl,
  shuffle,
)

METHODS = {
  "alternating": alternating.build,
  "bridge": bridge.build,
  "chord": chord.build,
  "dft": dft.build,
  "grpo": grpo.build,
  "gta": gta.build,
  "hpt": hpt.build,
  "luffy": luffy.build,
  "meta_gradient": meta_gradient.build,
  "mixed": mixed.build,
  "sasr": sasr.build,
  "sft": sft.build,
  "sft_then_rl": sft_then_rl.build,
  "shuffle": shuffle.build,
}
