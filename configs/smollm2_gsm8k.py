"""BRIDGE with SmolLM2-135M-Instruct on GSM8K.

    python tools/fetch_smollm2.py --out smollm2
    python -m bilevel_jax.main --config configs/smollm2_gsm8k.py

GSM8K comes from the hub; local copies are read in its place with
`--config.data.questions.path=TRAIN --config.data.evaluation.path=TEST`.

Hardware: one GPU of 24 GB (about 10 s a step), or a CPU with patience (about
6 minutes a step on two cores). Expected: 135M parameters solve a few percent
of GSM8K; this config shows the mechanics, not a good score.
"""

from bilevel_jax import config


def get_config():
  """Returns the settings of this run."""
  c = config.default_config()
  c.run_dir = "runs/smollm2_gsm8k"
  c.steps = 200
  c.model.weights = "smollm2"
  for source in (c.data.questions, c.data.evaluation):
    source.hub = "openai/gsm8k"
    source.name = "main"
    source.fields.solution = "answer"
  c.data.evaluation.split = "test"
  c.data.evaluation.count = 200
  c.data.prompts_per_step = 16
  c.data.demonstrations_per_step = 16
  c.data.max_prompt_tokens = 320
  c.data.max_demonstration_tokens = 640
  c.reward.verifiers = ("math",)
  c.rollout.samples_per_prompt = 8
  c.rollout.max_new_tokens = 256
  c.rl.kl_estimate = "k3"
  c.training.micro_batch_tokens = 4096
  c.optimizer.base.learning_rate = 5e-6
  c.optimizer.adapter.learning_rate = 5e-5
  c.evaluation.every = 50
  return c
