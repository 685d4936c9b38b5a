"""The paper's run on MATH: BRIDGE, Qwen3-8B-Base, MATH level 3-5 (8.5k).

    python -m bilevel_jax.main --config configs/bridge_qwen3_8b_math.py \
      --config.data.demonstrations.path=TRACES.jsonl

Data and differences from the paper as in configs/bridge_qwen25_3b_limr.py,
with data/math_lvl3to5.jsonl for the questions. As in the paper's second
version: 8 samples of up to 8,192 tokens, an adapter of rank 32 and alpha 16.

Hardware: 8 GPUs of 192 GB in the paper, 33.5 hours.
Expected (the paper's single greedy run): MATH500 79.0 from 55.4; mean of five
benchmarks 49.9 against 42.9 for RL alone (docs/results/bridge_paper.md). Not
run by us.
"""

from configs import bridge_qwen25_3b_limr


def get_config():
  """Returns the settings of this run."""
  c = bridge_qwen25_3b_limr.get_config()
  c.run_dir = "runs/bridge_qwen3_8b_math"
  c.model.weights = "Qwen/Qwen3-8B-Base"
  c.data.questions.path = "data/math_lvl3to5.jsonl"
  c.adapter.rank = 32
  c.rollout.samples_per_prompt = 8
  c.rollout.max_new_tokens = 8192
  c.evaluation.max_new_tokens = 8192
  c.steps = 799  # six epochs of 8,523 problems, 64 a step
  c.evaluation.every = 50
  c.checkpoints.every = 50
  return c
