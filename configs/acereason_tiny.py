"""AceReason's stages on a laptop: SFT, then mathematics, then programs.

    RECIPE=configs/acereason_tiny.py:acereason_tiny
    python -m bilevel_jax.main --config ${RECIPE}_sft
    python -m bilevel_jax.main --config ${RECIPE}_math
    python -m bilevel_jax.difficulty --config ${RECIPE}_code --out rates.jsonl
    python -m bilevel_jax.main --config ${RECIPE}_code \
      --config.data.pass_rates=rates.jsonl --config.data.keep=0.05..0.95 \
      --config.data.curriculum=easy_first

The policy of configs/quickstart.py learns to write programs of a few tokens
(`f=lambda x:x+3`) from 64 demonstrations, in SFT. RL of arithmetic follows, and
RL of programs, whose reward is the share of hidden tests that they pass in the
sandbox; what the policy always or never solves is not asked. It is the form of
configs/acereason.py, and CI runs it.

Hardware: 2 CPU cores, no download. Cost: a few minutes. Expected (one run,
intervals of 95%): held-out programs 0% to 10% (5.5% to 17.4%) in SFT;
arithmetic 6.5% (3.8% to 10.8%) to 19.5% (14.6% to 25.5%) in its stage. The last
stage, of 300 questions, did not help: programs 9% (4.8% to 16.2%) to 5% (2.2%
to 11.2%). It shows that the stages fit together, not that they pay.
"""

from configs import quickstart

NAMES = ("acereason_tiny_sft", "acereason_tiny_math", "acereason_tiny_code")


def get_config(name="acereason_tiny_sft"):
  """Returns the settings of a stage."""
  c = quickstart.start()
  c.run_dir = f"runs/{name}"
  c.rl.kl_coef = 0.0
  c.sandbox.deadline_s = 4.0
  if name != "acereason_tiny_sft":
    before = NAMES[NAMES.index(name) - 1]
    c.model.weights = f"runs/{before}"
    c.method.name = "grpo"
    c.data.demonstrations_per_step = 0
  if name == "acereason_tiny_math":
    c.data.evaluation.count = 200
    c.steps = 10
    return c
  for source in (c.data.questions, c.data.evaluation):
    source.task = "programs"
    source.task_options = {}
  c.data.questions.count = 1000
  c.data.evaluation.count = 100
  c.reward.verifiers = ("code",)
  c.sandbox.score = "share"
  c.rollout.max_new_tokens = 24
  if name == "acereason_tiny_sft":
    c.method.name = "sft"
    c.data.demonstration_share = 0.064
    c.steps = 60
  return c
