"""One mixed batch on multi-step arithmetic (arXiv 2507.07562).

    python -m bilevel_jax.main --config configs/methods/data_mix.py

A recipe of the Synergy study, whose definition could not be read; ours: samples
and worked solutions are one batch under one normaliser, a solution's token
counting as a sampled one with advantage 1. Unlike mixed, SFT has the weight
that it has tokens.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: mix/sft_weight is
the share of solutions among the tokens.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/data_mix"
  c.method.name = "data_mix"
  return c
