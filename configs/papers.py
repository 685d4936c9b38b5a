"""Methods with the losses that their papers have, on multi-step arithmetic.

    python -m bilevel_jax.main --config configs/papers.py:luffy

The run of configs/methods.py:NAME, with what its paper or code sets of the RL
and SFT losses in place of this library's defaults: advantages, what weighs a
token, the KL (docs/methods.md). Sizes, rates and lengths stay those of the
task. For a run of your own, copy the settings of the NAME below.

Hardware: 2 CPU cores, no download. Expected: as configs/methods.py; nothing was
compared, for a method's place in a comparison is with the losses of the others.
"""

from bilevel_jax import errors
from configs import methods

_GRPO = {
  "rl.advantage": "group_std",
  "rl.weighting": "sequence_mean",
  "rl.kl_estimate": "k3",
}
_DR_GRPO = {
  "rl.advantage": "group_mean",
  "rl.weighting": "constant",
  "rl.kl_coef": 0.0,
}
LOSSES = {
  "grpo": _GRPO | {"rl.kl_coef": 0.04},
  "hpt": _DR_GRPO | {"sft.weighting": "token_mean"},
  "luffy": _DR_GRPO,
  "srft": _DR_GRPO
  | {"rl.advantage": "group_std", "sft.weighting": "token_mean"},
  "trapo": _DR_GRPO,
  "chord": {
    "rl.advantage": "group_std",
    "rl.kl_coef": 0.0,
    "method.chord.peak": 0.9,
    "method.chord.valley": 0.05,
    "method.chord.token_weight": "sft",
  },
  "relift": {"rl.kl_coef": 0.0, "method.relift.first_out": "newest"},
  "bridge": _GRPO
  | {
    "rl.kl_coef": 1e-3,
    "sft.weighting": "token_mean",
    "method.bridge.upper": "adapter",
    "method.bridge.hypergradient": "penalty",
    "method.bridge.rl_only_base": "persistent",
    "method.bridge.penalty": 0.5,
  },
}
NAMES = tuple(LOSSES)


def get_config(name: str = ""):
  """Returns the settings of the run of one method as its paper has it.

  Raises:
    ConfigError: no method has the name.
  """
  if name not in LOSSES:
    raise errors.ConfigError(
      f"--config configs/papers.py:NAME takes {', '.join(LOSSES)}, got "
      f"{repr(name) if name else 'no name'}"
    )
  c = methods.get_config(name)
  c.run_dir = f"runs/papers/{name}"
  c.update_from_flattened_dict(LOSSES[name])
  return c
