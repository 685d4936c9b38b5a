"""Two stages on multi-step arithmetic: a recipe of arXiv 2507.07562.

    python -m bilevel_jax.main --config configs/methods/two_stage.py

SFT, then RL: what this library calls sft_then_rl, and no other method. With the
recipes interleaved, progressive, data_mix and merge it makes the five of that
study of what combining SFT and RL is worth.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: as
configs/methods/sft_then_rl.py.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/two_stage"
  c.method.name = "sft_then_rl"
  return c
