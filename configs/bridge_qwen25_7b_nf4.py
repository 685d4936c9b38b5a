"""BRIDGE over a frozen Qwen2.5-7B in nf4 on a GPU of 24 GB.

    python -m bilevel_jax.main --config configs/bridge_qwen25_7b_nf4.py

The layers' matrices take 4.5 bits a weight and are expanded one layer at a
time; the upper level learns a weight for each demonstration. The weights are
converted in the host's memory, of which they take 28 GB in float32 meanwhile.

Hardware: one GPU of 24 GB, such as an L4 or an RTX 4090. `python
tools/plan_memory.py --config configs/bridge_qwen25_7b_nf4.py --memory 24GB`
says what it takes.
Expected: not run by us; no figure here is ours.
"""

from bilevel_jax import config


def get_config():
  """Returns the settings of this run."""
  c = config.default_config()
  c.run_dir = "runs/bridge_qwen25_7b_nf4"
  c.steps = 100
  c.model.weights = "Qwen/Qwen2.5-7B"
  c.model.train = "adapter"
  c.model.base_dtype = "nf4"
  c.model.compute_dtype = "bfloat16"
  c.adapter.rank = 16
  c.adapter.alpha = 32.0
  c.data.questions.path = "data/gsm8k_train.jsonl"
  c.data.evaluation.path = "data/gsm8k_test.jsonl"
  c.data.evaluation.count = 200
  c.data.prompts_per_step = 16
  c.data.demonstrations_per_step = 16
  c.data.max_prompt_tokens = 256
  c.data.max_demonstration_tokens = 512
  c.rollout.samples_per_prompt = 4
  c.rollout.max_new_tokens = 512
  c.rl.kl_coef = 0.0
  c.method.bridge.upper = "demonstrations"
  c.optimizer.base.learning_rate = 1e-4
  c.training.micro_batch_tokens = 4096
  c.evaluation.every = 25
  c.checkpoints.every = 10
  return c
