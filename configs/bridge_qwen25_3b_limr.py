"""The paper's first run: BRIDGE, Qwen2.5-3B, LIMR (1,389 MATH problems).

    python -m bilevel_jax.main --config configs/bridge_qwen25_3b_limr.py \
      --config.data.demonstrations.path=TRACES.jsonl

TRACES.jsonl holds the paper's SFT data: long reasoning traces of a stronger
model on the same problems (fields question, answer, solution), from
DeepMath-103K, which is public; how they were matched is not. Without the flag,
the demonstrations are the solutions in data/limr.jsonl. Held-out questions:
data/math500.jsonl.

Hardware: 4 GPUs of 80 GB in the paper, 6.9 hours for about 130 steps.
Expected (the paper's single greedy runs): MATH500 65.4 from 32.4; mean of
five benchmarks 36.4 against 32.2 for RL alone, each with a standard error of
about 2.1 points (docs/results/bridge_paper.md). Not run by us: no figure here
is ours.

Differences from the paper: the KL term is GRPO's, k3 as a loss; J_RL as it is
written there, with KL(policy || start), is `--config.rl.kl_estimate=reward`.
Beta, the adapter's learning rate, is 1e-5 where it prints 5e-7 for everything;
a hundredth of what LoRA commonly takes would leave the upper level where it
started.
"""

from bilevel_jax import config


def get_config():
  """Returns the settings of this run."""
  c = config.default_config()
  c.run_dir = "runs/bridge_qwen25_3b_limr"
  c.steps = 130
  c.model.weights = "Qwen/Qwen2.5-3B"
  c.model.compute_dtype = "bfloat16"
  c.adapter.rank = 16
  c.adapter.alpha = 16.0
  c.data.questions.path = "data/limr.jsonl"
  c.data.evaluation.path = "data/math500.jsonl"
  c.data.prompts_per_step = 64
  c.data.demonstrations_per_step = 64
  c.data.max_prompt_tokens = 1024
  c.data.max_demonstration_tokens = 4096
  c.reward.verifiers = ("math",)
  c.reward.workers = 8
  c.rollout.samples_per_prompt = 5
  c.rollout.max_new_tokens = 3000
  c.rl.kl_coef = 1e-3
  c.rl.kl_estimate = "k3"
  c.rl.advantage = "group_std"
  c.rl.clip_low = 0.2
  c.rl.clip_high = 0.2
  c.rl.weighting = "sequence_mean"
  c.sft.weighting = "token_mean"
  c.method.bridge.upper = "adapter"
  c.method.bridge.hypergradient = "penalty"
  c.method.bridge.rl_only_base = "persistent"
  c.method.bridge.penalty = 0.5
  c.optimizer.base.learning_rate = 5e-7
  c.optimizer.adapter.learning_rate = 1e-5
  c.training.micro_batch_tokens = 16384
  c.evaluation.every = 10
  c.evaluation.max_new_tokens = 5000
  c.checkpoints.every = 10
  return c
