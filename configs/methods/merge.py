"""Merged models on multi-step arithmetic (arXiv 2507.07562).

    python -m bilevel_jax.main --config configs/methods/merge.py

A recipe of the Synergy study: RL and SFT each change the same start, and what
they changed is added, half of each (method.merge.rl_weight, sft_weight). Ours:
both are trained in one run, first RL, then SFT from the start again.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: what is
evaluated before the last step is a branch; the last accuracy is the merged
model's.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/merge"
  c.method.name = "merge"
  return c
