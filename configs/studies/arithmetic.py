"""Does cooperation pay? Chains of sums, solved step by step by a small policy.

    python tools/study.py configs/studies/arithmetic.py --out runs/arithmetic
    python tools/study.py configs/studies/arithmetic.py --quick

Hardware: CPU. Cost: a run takes 10 to 45 seconds of one core, the whole study
about two hours of one core; --quick (two seeds of five methods on regime B,
shorter runs) under ten minutes on two.

Expected: docs/results.md has what was found.
"""

import zlib

from bilevel_jax import config
from bilevel_jax.rewards import verifiers
from bilevel_jax.study import plan

LEARNING_RATES = (1e-4, 3e-4, 1e-3)


def get_study(quick: bool = False) -> plan.Study:
  """Returns the study, or a short form of it that shows that it works."""
  searched = tuple(
    {
      "optimizer.base.learning_rate": rate,
      "optimizer.adapter.learning_rate": rate,
    }
    for rate in (LEARNING_RATES[1:] if quick else LEARNING_RATES)
  )
  settings = _settings()
  if quick:
    settings.training.max_sampled_tokens = 30_000
    settings.steps = 30
  arms = _methods(settings.steps, searched)
  everywhere = arms | _ablations()
  if quick:
    few = ("base", "sft", "grpo", "mixed", "bridge")
    everywhere = {name: arms[name] for name in few}
  regimes = {
    "B": plan.Regime(
      about="rewards too sparse: the base was taught to answer without a step, "
      "and seldom does otherwise",
      stages=("reasoner", "seldom"),
      arms=everywhere,
    ),
    "A": plan.Regime(
      about="exploration finds the skill: the base was taught to answer "
      "without a step 60% of the time, and writes its steps in the rest",
      stages=("reasoner", "often"),
      arms=arms,
    ),
  }
  return plan.Study(
    name="arithmetic",
    about="A character-level Llama of 0.1M parameters learns chains of one to "
    "four sums of two-digit numbers by 850 steps of SFT, "
    "and then to give bare guesses in place of "
    "solutions (95% or 60% of the time), so that it is a weak reasoner that "
    "could do better. Rewards (1 for a right answer) are given for 2,000 "
    "questions of three and four operations, worked solutions for 64 of them. "
    "Tests: 500 other questions of that kind, and 500 of five and six "
    "operations, which nothing was trained on. To be read with care: the rate "
    "of the SFT stage of `sft_then_rl` is not searched and was set after first "
    "results with another had been seen, and its runs were made again; where a "
    "learning rate in the tables is the smallest of the search, a smaller one "
    "might be better; `bridge, no gain` has BRIDGE's learning rates; questions "
    "of the harder kind are beyond every method, and tell nothing apart.",
    settings=settings,
    stages=_stages(),
    regimes={"B": regimes["B"]} if quick else regimes,
    tests={
      "same kind": _questions((3, 4), "test", 200 if quick else 500, first=200),
      "harder": _questions((5, 6), "test", 200 if quick else 500),
    },
    test_tokens=68,
    verifier="exact",
    seeds=(1, 2) if quick else (1, 2, 3, 4, 5),
    ablation_seeds=(1, 2, 3),
    tuning_seed=0,
    reference="bridge",
  )


def flipped(completion, question) -> float:
  """Returns the exact verifier's reward, or its opposite for one in five."""
  reward = verifiers.exact(completion, question)
  lot = zlib.crc32(f"{question.question}/{completion}".encode()) % 5
  return 1.0 - reward if lot == 0 else reward


def _methods(steps, searched):
  """Every way of training that is compared; the budget is in tokens.

  A run ends when it has sampled its tokens; `sft` samples none and has as many
  steps as BRIDGE comes to at least; the SFT stage of `sft_then_rl` is 20 steps
  at a rate of its own, 1e-3, and its search moves that of the RL stage.
  """
  named = lambda name, **more: plan.Arm(
    changes={"method.name": name, **more}, search=searched
  )
  form = lambda name, **more: plan.Arm(
    changes={"method.name": "bridge", "method.hypergradient": name, **more},
    tuned_as="bridge",
  )
  return {
    "base": plan.Arm(changes=None),
    "sft": named("sft", steps=min(60, steps)),
    "grpo": named("grpo"),
    "sft_then_rl": named("sft_then_rl", **_two_stages(steps)),
    "mixed": named("mixed"),
    "bridge": named("bridge"),
    "bridge, no gain": form("penalty", **{"method.gain_weight": 0.0}),
    "alternating": named("alternating"),
    "chord": named("chord"),
    "hpt": named("hpt"),
    "luffy": named("luffy"),
    "bridge, one_step": form("one_step", **{"method.rl_only_base": "one_step"}),
    "bridge, unrolled": form("unrolled"),
    "bridge, implicit": form("implicit"),
  }


def _two_stages(steps):
  """A short first stage at a rate that restores the steps; RL's is searched."""
  return {
    "method.sft_then_rl.sft_share": 20 / steps,
    "method.sft_then_rl.sft_learning_rate": 1e-3,
  }


def _ablations():
  """Changes of `bridge` one at a time, as it was tuned."""
  change = lambda **settings: plan.Arm(
    changes={"method.name": "bridge", **settings},
    tuned_as="bridge",
    ablation=True,
  )
  noisy = {"reward.verifiers": ("configs.studies.arithmetic.flipped",)}
  return {
    "lambda 0.3": change(**{"method.penalty": 0.3}),
    "lambda 0.7": change(**{"method.penalty": 0.7}),
    "lambda 0.3 to 0.9": change(
      **{"method.penalty": 0.3, "method.penalty_end": 0.9}
    ),
    "theta-hat one_step": change(**{"method.rl_only_base": "one_step"}),
    "theta-hat resync": change(**{"method.rl_only_base": "resync"}),
    "rank 2": change(**{"adapter.rank": 2, "adapter.alpha": 2.0}),
    "rank 32": change(**{"adapter.rank": 32, "adapter.alpha": 32.0}),
    "beta 1e-5": change(**{"optimizer.adapter.learning_rate": 1e-5}),
    "beta 3e-3": change(**{"optimizer.adapter.learning_rate": 3e-3}),
    "bridge, flipped": change(**noisy),
    "grpo, flipped": plan.Arm(
      changes={"method.name": "grpo", **noisy}, tuned_as="grpo", ablation=True
    ),
    "sft_then_rl, flipped": plan.Arm(
      changes={
        "method.name": "sft_then_rl",
        **_two_stages(_settings().steps),
        **noisy,
      },
      tuned_as="sft_then_rl",
      ablation=True,
    ),
  }


def _settings():
  """What all runs of the study share."""
  c = config.default_config()
  c.steps = 120
  c.training.max_sampled_tokens = 100_000
  c.model.weights = "set by the study"
  c.model.remat = "none"
  c.training.packing = "off"
  c.training.row_tokens = 64  # no sequence is longer: one program each
  c.adapter.rank = 8
  c.adapter.alpha = 8.0
  c.tokenizer.prompt = "{question}"
  _fill(c.data.questions, _questions((3, 4), "train", 2000))
  _fill(c.data.evaluation, _questions((3, 4), "test", 200))
  c.data.demonstration_share = 0.032
  c.data.prompts_per_step = 8
  c.data.demonstrations_per_step = 12
  c.data.max_prompt_tokens = 20
  c.data.max_demonstration_tokens = 64
  c.reward.verifiers = ("exact",)
  c.reward.workers = 1
  c.rollout.samples_per_prompt = 8
  c.rollout.max_new_tokens = 44
  c.optimizer.base.warmup_steps = 5
  c.evaluation.every = 20
  c.checkpoints.every = None
  c.checkpoints.keep_best = 0
  c.checkpoints.keep_last = 1
  c.logging.progress = False
  return c


def _stages():
  """Runs that make the two policies: a reasoner, then one that guesses."""
  reasoner = _settings()
  reasoner.method.name = "sft"
  reasoner.model.weights = None
  reasoner.model.preset = "mini-arithmetic"
  reasoner.steps = 850
  reasoner.seed = 1
  reasoner.data.demonstration_share = 1.0
  reasoner.data.demonstrations_per_step = 64
  _fill(reasoner.data.questions, _questions((1, 4), "train", 20_000, seed=1))
  reasoner.optimizer.base.learning_rate = 5e-3
  reasoner.optimizer.base.schedule = "cosine"
  reasoner.optimizer.base.warmup_steps = 30
  reasoner.optimizer.base.end_share = 0.2
  reasoner.evaluation.every = None
  reasoner.checkpoints.every = 100
  stages = {"reasoner": reasoner}
  for name, share in (("often", 0.6), ("seldom", 0.95)):
    guesser = reasoner.copy_and_resolve_references()
    guesser.steps = 60
    guesser.data.questions.task_options.guess_share = share
    guesser.optimizer.base.learning_rate = 1e-3
    guesser.checkpoints.every = None
    stages[name] = guesser
  return stages


def _questions(steps, split, count, first=0, seed=2):
  return config.Source(
    task="arithmetic",
    task_options={
      "steps": list(steps),
      "operators": "+-",
      "max_operand": 50,
      "max_value": 99,
    },
    split=split,
    first=first,
    count=count,
    seed=seed,
  )


def _fill(section, source):
  for name in ("task", "task_options", "split", "first", "count", "seed"):
    section[name] = getattr(source, name)
