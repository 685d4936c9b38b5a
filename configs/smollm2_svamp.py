"""BRIDGE with SmolLM2-135M-Instruct on SVAMP: real weights, real questions.

    python tools/fetch_smollm2.py --out smollm2
    python -m bilevel_jax.main --config configs/smollm2_svamp.py

SVAMP comes from the hub. A local copy, JSONL with the fields question, answer
and solution, is read in its place with
`--config.data.questions.path=FILE --config.data.evaluation.path=FILE`. 700
questions are trained on, 100 of the other 300 held out. The worked solutions
are one equation each; the reward is the number.

Hardware: 2 CPU cores and 16 GB, or any GPU. Cost: one to several minutes a step
on two busy cores. Expected: after 20 steps of one seed, 17 of 100 held-out
questions (95% interval 10.9% to 25.5%), from 1 of 100 (0.2% to 5.4%); the SFT
loss fell from 2.51 to 0.36 and the rewards were mostly 0, so this is the
demonstrations' doing. The weights were quantised to four bits and add badly.
"""

from bilevel_jax import config


def get_config():
  """Returns the settings of this run."""
  c = config.default_config()
  c.run_dir = "runs/smollm2_svamp"
  c.steps = 20
  c.model.weights = "smollm2"
  c.adapter.rank = 16
  c.tokenizer.prompt = (
    "{question}\nAnswer with one equation that ends with the number."
  )
  for source in (c.data.questions, c.data.evaluation):
    source.hub = "ChilleD/SVAMP"
    source.split = "train+test"
    source.fields.question = "question_concat"
    source.fields.answer = "Answer"
    source.fields.solution = "Equation"
  c.data.questions.count = 700
  c.data.evaluation.first = 700
  c.data.evaluation.count = 100
  c.data.prompts_per_step = 4
  c.data.demonstrations_per_step = 8
  c.data.max_prompt_tokens = 160
  c.data.max_demonstration_tokens = 256
  c.reward.verifiers = ("number",)
  c.rollout.samples_per_prompt = 4
  c.rollout.max_new_tokens = 24
  c.rl.kl_estimate = "k3"
  c.training.micro_batch_tokens = 2048
  c.optimizer.base.learning_rate = 5e-5
  c.optimizer.adapter.learning_rate = 1e-4
  c.checkpoints.every = 5
  c.checkpoints.keep_last = 1
  c.checkpoints.keep_best = 0
  c.logging.show_every = 5
  return c
