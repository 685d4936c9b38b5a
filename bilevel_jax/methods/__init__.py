"""Every way of combining SFT and RL, under one contract."""

from bilevel_jax.methods import bridge, grpo, sft

METHODS = {"bridge": bridge.build, "grpo": grpo.build, "sft": sft.build}
