"""SFT, then RL, on multi-step arithmetic: the cold start.

    python -m bilevel_jax.main --config configs/methods/sft_then_rl.py

The standard two stages, and a strong baseline when done properly (arXiv
2604.23747). Ours: half of the steps each; a fresh optimiser and its own
schedule for each stage; the KL of the second is to what the first one made.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: rewards are first logged at step 21.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/sft_then_rl"
  c.method.name = "sft_then_rl"
  return c
