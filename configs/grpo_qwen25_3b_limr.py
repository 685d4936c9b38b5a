"""RL from the base, as the paper's baseline: GRPO, Qwen2.5-3B, LIMR.

    python -m bilevel_jax.main --config configs/grpo_qwen25_3b_limr.py

The same as configs/bridge_qwen25_3b_limr.py in everything but the method.

Hardware: 4 GPUs of 80 GB in the paper, 6.1 hours. Expected (the paper's
single greedy run): MATH500 64.4, mean of five benchmarks 32.2. Not run by us.
"""

from configs import bridge_qwen25_3b_limr


def get_config():
  """Returns the settings of this run."""
  c = bridge_qwen25_3b_limr.get_config()
  c.run_dir = "runs/grpo_qwen25_3b_limr"
  c.method.name = "grpo"
  return c
