"""BRIDGE over a frozen Qwen3-8B-Base on one GPU of 80 GB, with two adapters.

    python -m bilevel_jax.main --config configs/bridge_qwen3_8b_lora.py \
      --config.data.demonstrations.path=TRACES.jsonl

The paper's form with factors in both levels: the lower ones on attention's
matrices, the upper ones on the MLP's. TRACES.jsonl holds long reasoning traces
(fields question, answer, solution), as for configs/bridge_qwen3_8b_math.py.

Hardware: one GPU of 80 GB. `python tools/plan_memory.py --config
configs/bridge_qwen3_8b_lora.py --memory 80GB` says what it takes.
Expected: not run by us; no figure here is ours.
"""

from bilevel_jax import config


def get_config():
  """Returns the settings of this run."""
  c = config.default_config()
  c.run_dir = "runs/bridge_qwen3_8b_lora"
  c.steps = 130
  c.model.weights = "Qwen/Qwen3-8B-Base"
  c.model.train = "adapter"
  c.model.base_dtype = "bfloat16"
  c.model.compute_dtype = "bfloat16"
  c.adapter.rank = 16
  c.adapter.alpha = 32.0
  c.adapter.targets = ("q", "k", "v", "o")
  c.adapter.upper_targets = ("gate", "up", "down")
  c.data.questions.path = "data/math_train.jsonl"
  c.data.evaluation.path = "data/math500.jsonl"
  c.data.prompts_per_step = 32
  c.data.demonstrations_per_step = 32
  c.data.max_prompt_tokens = 1024
  c.data.max_demonstration_tokens = 4096
  c.rollout.samples_per_prompt = 5
  c.rollout.max_new_tokens = 3000
  c.rl.kl_coef = 1e-3
  c.method.bridge.upper = "adapter"
  c.optimizer.base.learning_rate = 1e-4
  c.optimizer.adapter.learning_rate = 1e-4
  c.training.micro_batch_tokens = 8192
  c.evaluation.every = 10
  c.checkpoints.every = 10
  return c
