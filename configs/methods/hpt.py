"""HPT on multi-step arithmetic: RL where solved, else SFT (arXiv 2509.04419).

    python -m bilevel_jax.main --config configs/methods/hpt.py

A question of which more than method.hpt.gate of the samples are right is
learned from by RL, any other by SFT on its own worked solution. The gate is 0,
as in the paper for Qwen. Ours: questions without a solution (three quarters
here) stay with RL, and each question counts the same on either side.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: mix/sft_questions falls as questions are
solved.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/hpt"
  c.method.name = "hpt"
  return c
