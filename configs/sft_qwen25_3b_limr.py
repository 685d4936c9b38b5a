"""SFT alone, as the paper's baseline: Qwen2.5-3B on LIMR's demonstrations.

    python -m bilevel_jax.main --config configs/sft_qwen25_3b_limr.py \
      --config.data.demonstrations.path=TRACES.jsonl

The same as configs/bridge_qwen25_3b_limr.py in everything but the method and
its learning rate (ours: 5e-7 is an RL rate, and SFT at it is a straw man).

Hardware: 4 GPUs of 80 GB. Expected (the paper's single greedy run): MATH500
53.4, mean of five benchmarks 27.9. Not run by us.
"""

from configs import bridge_qwen25_3b_limr


def get_config():
  """Returns the settings of this run."""
  c = bridge_qwen25_3b_limr.get_config()
  c.run_dir = "runs/sft_qwen25_3b_limr"
  c.method.name = "sft"
  c.optimizer.base.learning_rate = 1e-5
  c.optimizer.base.schedule = "cosine"
  c.optimizer.base.warmup_steps = 10
  return c
