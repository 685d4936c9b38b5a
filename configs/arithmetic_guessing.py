"""The second half of making quickstart's policy: a reasoner learns to guess.

    python tools/make_arithmetic_policy.py --out DIR

runs configs/arithmetic_pretraining.py, then configs/arithmetic_guessing.py on
its export: a little SFT on solutions of which three in five are bare answers.
What comes out can do arithmetic step by step, and seldom does.

Hardware: 2 CPU cores. Cost: under a minute. Expected: 18% of the
answers right, from 80%.
"""

from configs import arithmetic_pretraining


def get_config():
  """Returns the settings of this run."""
  c = arithmetic_pretraining.get_config()
  c.run_dir = "runs/arithmetic_guessing"
  c.model.preset = None
  c.model.weights = "runs/arithmetic_pretraining/export"
  c.steps = 80
  c.data.questions.task_options.guess_share = 0.6
  c.optimizer.base.learning_rate = 1e-3
  c.optimizer.base.warmup_steps = 10
  return c
