"""AceReason-Nemotron 1.1: SFT, then RL of mathematics and of code, in stages.

    RECIPE=configs/acereason.py:acereason
    python -m bilevel_jax.main --config ${RECIPE}_sft
    python -m bilevel_jax.difficulty --config ${RECIPE}_math_8k \
      --samples 8 --out runs/acereason_math_8k_pass_rates.jsonl
    python -m bilevel_jax.main --config ${RECIPE}_math_8k

and the same two commands for each of acereason_math_16k, acereason_math_24k,
acereason_code_24k, acereason_code_32k and acereason_math_32k. A stage begins
with the weights of the one before it, and asks what its first policy sometimes,
but not always, answers: the pass rates are those of that policy, so what is
solved leaves (configs/acereason_tiny.py is the same form on a laptop).

From the papers (arXiv 2506.13284 and, for what it leaves to its forerunner,
2505.16400): the stages and their lengths; GRPO with one update a batch, no KL,
the token's mean over the batch, learning rate 1e-6; completions that are cut
are left out of the 8K and 16K stages alone; a temperature that keeps the
entropy near 0.3 (here 1.0, as a start; logging.entropy shows it); code rewarded
by all of its tests. SFT scales both the prompts and the responses to each: the
released set has both. Ours: 128 questions with 8 samples in the first stage and
16 later, the steps, bounds of pass rates, and SFT's learning rate.

Data: nvidia/AceReason-1.1-SFT and nvidia/AceReason-Math are on the hub. The
code questions were not released: acereason_code.jsonl is yours, with tests in a
form of docs/code_rewards.md. Qwen2.5-Math-7B has 4096 positions: let its
config.json say more of them, and a larger rope_theta, before SFT.

Hardware: 8 GPUs of 80 GB at least, and weeks of them. Expected (the paper's):
AIME25 64.8 and LiveCodeBench v6 52.1, avg@64 and avg@8, from Qwen2.5-Math-7B.
Not run by us.
"""

from bilevel_jax import config

_LENGTHS = {
  "math_8k": 8192,
  "math_16k": 16384,
  "math_24k": 24576,
  "code_24k": 24576,
  "code_32k": 32768,
  "math_32k": 32768,
}
NAMES = ("acereason_sft", *(f"acereason_{stage}" for stage in _LENGTHS))


def get_config(name="acereason_sft"):
  """Returns the settings of a stage."""
  c = config.default_config()
  c.run_dir = f"runs/{name}"
  c.model.compute_dtype = "bfloat16"
  c.data.max_prompt_tokens = 2048
  c.data.max_demonstration_tokens = 34816
  if name == "acereason_sft":
    c.method.name = "sft"
    c.model.weights = "Qwen/Qwen2.5-Math-7B"
    c.steps = 5000
    c.data.demonstrations_per_step = 128
    c.data.prompts_per_step = 1
    source = c.data.questions
    source.hub = "nvidia/AceReason-1.1-SFT"
    source.fields.question = "input"
    source.fields.solution = "output"
    c.optimizer.base.learning_rate = 1e-5
    c.optimizer.base.schedule = "cosine"
    c.optimizer.base.warmup_steps = 100
    return c
  before = NAMES[NAMES.index(name) - 1]
  c.method.name = "grpo"
  c.model.weights = f"runs/{before}"
  c.steps = 500
  c.data.demonstrations_per_step = 0
  c.data.prompts_per_step = 128
  c.data.pass_rates = f"runs/{name}_pass_rates.jsonl"
  c.data.keep = "0.05..0.95"
  c.data.curriculum = "easy_first"
  stage = name.removeprefix("acereason_")
  c.rollout.max_new_tokens = _LENGTHS[stage]
  c.rollout.samples_per_prompt = 8 if stage == "math_8k" else 16
  c.rollout.temperature = 1.0
  c.rl.kl_coef = 0.0
  c.rl.weighting = "token_mean"
  c.rl.truncated = "drop" if stage in ("math_8k", "math_16k") else "keep"
  c.optimizer.base.learning_rate = 1e-6
  c.reward.workers = 16
  c.reward.deadline_s = 35.0
  c.sandbox.deadline_s = 30.0
  c.sandbox.test_s = 6.0
  c.sandbox.cpu_s = 30
  if stage.startswith("math"):
    c.data.questions.hub = "nvidia/AceReason-Math"
    c.data.questions.fields.question = "problem"
    c.reward.verifiers = ("math",)
    return c
  c.data.questions.path = "acereason_code.jsonl"
  c.reward.verifiers = ("code",)
  c.tokenizer.prompt = (
    "{question}\nPlease reason step by step, and give the whole Python program "
    "in a markdown code block."
  )
  return c
