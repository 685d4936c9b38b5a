"""BRIDGE over a frozen Qwen2.5-1.5B on a GPU of 16 GB, such as a free T4.

    python -m bilevel_jax.main --config configs/bridge_qwen25_1.5b_t4.py

LoRA factors over a base in bfloat16; the upper level learns a weight for each
demonstration. A T4 multiplies no bfloat16: everything is computed in float32.

Hardware: one GPU of 16 GB. `python tools/plan_memory.py --config
configs/bridge_qwen25_1.5b_t4.py --memory 16GB` says what it takes.
Expected: not run by us; no figure here is ours.
"""

from bilevel_jax import config


def get_config():
  """Returns the settings of this run."""
  c = config.default_config()
  c.run_dir = "runs/bridge_qwen25_1.5b_t4"
  c.steps = 100
  c.model.weights = "Qwen/Qwen2.5-1.5B"
  c.model.train = "adapter"
  c.model.base_dtype = "bfloat16"
  c.model.compute_dtype = "float32"
  c.model.logprob_chunk = 512
  c.adapter.rank = 16
  c.adapter.alpha = 32.0
  c.data.questions.path = "data/gsm8k_train.jsonl"
  c.data.evaluation.path = "data/gsm8k_test.jsonl"
  c.data.evaluation.count = 200
  c.data.prompts_per_step = 8
  c.data.demonstrations_per_step = 8
  c.data.max_prompt_tokens = 256
  c.data.max_demonstration_tokens = 512
  c.rollout.samples_per_prompt = 4
  c.rollout.max_new_tokens = 256
  c.rl.kl_coef = 0.0
  c.method.bridge.upper = "demonstrations"
  c.optimizer.base.learning_rate = 1e-4
  c.training.micro_batch_tokens = 2048
  c.evaluation.every = 25
  c.checkpoints.every = 10
  return c
