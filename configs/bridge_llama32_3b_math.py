"""The paper's run on MATH: BRIDGE, Llama-3.2-3B-Instruct, level 3-5 (8.5k).

    python -m bilevel_jax.main --config configs/bridge_llama32_3b_math.py \
      --config.data.demonstrations.path=TRACES.jsonl

Data and differences from the paper as in configs/bridge_qwen25_3b_limr.py,
with data/math_lvl3to5.jsonl for the questions.

Hardware: 4 GPUs of 80 GB in the paper.
Expected (the paper's single greedy run): MATH500 51.8 from 38.0; mean of five
benchmarks 24.7 against 21.8 for RL alone (docs/results/bridge_paper.md). Not
run by us.
"""

from configs import bridge_qwen25_3b_limr


def get_config():
  """Returns the settings of this run."""
  c = bridge_qwen25_3b_limr.get_config()
  c.run_dir = "runs/bridge_llama32_3b_math"
  c.model.weights = "meta-llama/Llama-3.2-3B-Instruct"
  c.data.questions.path = "data/math_lvl3to5.jsonl"
  c.steps = 799  # six epochs of 8,523 problems, 64 a step
  c.evaluation.every = 50
  c.checkpoints.every = 50
  return c
