"""Makes a small policy that does arithmetic step by step: SFT, from noise.

    python tools/make_arithmetic_policy.py --out DIR

runs configs/arithmetic_pretraining.py with the tokenizer that it writes, then
configs/arithmetic_guessing.py on the result.

Hardware: 2 CPU cores. Cost: about 4 minutes. Expected: four in five answers
right.
"""

from bilevel_jax import config


def get_config():
  """Returns the settings of this run."""
  c = config.default_config()
  c.run_dir = "runs/arithmetic_pretraining"
  c.method.name = "sft"
  c.steps = 1000
  c.model.preset = "small-arithmetic"
  c.model.remat = "none"
  c.tokenizer.prompt = "{question}"
  for source in (c.data.questions, c.data.evaluation):
    source.task = "arithmetic"
    source.seed = 1
    source.task_options = {
      "steps": (1, 4),
      "max_operand": 30,
      "max_value": 200,
    }
  c.data.questions.count = 20000
  c.data.evaluation.split = "test"
  c.data.evaluation.count = 500
  c.data.demonstrations_per_step = 64
  c.data.max_prompt_tokens = 32
  c.data.max_demonstration_tokens = 128
  c.rollout.max_new_tokens = 64
  c.reward.verifiers = ("exact",)
  c.optimizer.base.learning_rate = 3e-3
  c.optimizer.base.schedule = "cosine"
  c.optimizer.base.warmup_steps = 50
  c.checkpoints.every = 200
  c.checkpoints.keep_best = 0
  return c
