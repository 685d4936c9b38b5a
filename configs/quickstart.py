"""BRIDGE learns which demonstrations help, on a laptop.

    python -m bilevel_jax.main --config configs/quickstart.py

Starts from `bilevel_jax/assets/arithmetic_policy`, a character-level Llama of
0.3M parameters that can compute step by step and mostly guesses instead (made
by `tools/make_arithmetic_policy.py`). There are rewards for 4,000 questions of
arithmetic and 128 demonstrations, of which more than half are spoiled: right
answers without a step (guesses), and solutions with one wrong value on the way
(slips). Nobody says which. BRIDGE's upper level learns a weight for each from
what it does to the reward.

Hardware: 2 CPU cores, no download. Cost: under 2 minutes.
Expected: accuracy on 500 held-out questions rises, intervals far apart, and the
weights of guesses and slips end near 0; see README.md for what was measured.
"""

import importlib.resources

from bilevel_jax import config


def get_config():
  """Returns the settings of this run."""
  c = start()
  c.run_dir = "runs/quickstart"
  c.method.name = "bridge"
  c.method.bridge.upper = "demonstrations"
  c.data.demonstrations.task = "arithmetic"
  c.data.demonstrations.count = 128
  c.data.demonstrations.seed = 1
  c.data.demonstrations.task_options = arithmetic() | {
    "guess_share": 0.3,
    "slip_share": 0.3,
  }
  c.data.demonstration_share = 1.0
  c.data.demonstration_group = "kind"
  return c


def start():
  """Returns the settings of the same run without spoiled demonstrations.

  They are worked solutions of a quarter of the questions.
  """
  c = config.default_config()
  c.steps = 40
  c.model.weights = str(
    importlib.resources.files("bilevel_jax") / "assets" / "arithmetic_policy"
  )
  c.model.remat = "none"
  c.adapter.rank = 8
  c.tokenizer.prompt = "{question}"
  c.data.questions.task = "arithmetic"
  c.data.questions.count = 4000
  c.data.questions.task_options = arithmetic()
  c.data.demonstration_share = 0.25
  c.data.evaluation.task = "arithmetic"
  c.data.evaluation.split = "test"
  c.data.evaluation.count = 500
  c.data.evaluation.task_options = arithmetic()
  c.data.prompts_per_step = 16
  c.data.demonstrations_per_step = 16
  c.data.max_prompt_tokens = 32
  c.data.max_demonstration_tokens = 128
  c.reward.verifiers = ("exact",)
  c.rollout.samples_per_prompt = 8
  c.rollout.max_new_tokens = 64
  c.rl.kl_estimate = "k3"
  c.training.micro_batch_tokens = 1024
  c.optimizer.base.learning_rate = 3e-4
  c.optimizer.base.warmup_steps = 5
  c.optimizer.adapter.learning_rate = 3e-4
  c.checkpoints.every = 20
  return c


def arithmetic():
  """Returns the task's options: chains of two to four operations."""
  return {"steps": (2, 4), "max_operand": 30, "max_value": 200}
