"""Does cooperation pay? Chains of sums, solved step by step by a small policy.

    python tools/study.py configs/studies/arithmetic.py --out runs/arithmetic
    python tools/study.py configs/studies/arithmetic.py --quick

Hardware: CPU. Cost: a run takes 10 to 40 seconds of one core, with
hypergradients of second order a few minutes, the whole study about five hours;
--quick (two seeds of five methods on regime B, shorter runs) under ten minutes
on two.

Expected: docs/results.md has what was found.
"""

import json
import pathlib
import zlib

from bilevel_jax import config
from bilevel_jax.rewards import verifiers
from bilevel_jax.study import findings, plan

LEARNING_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 1e-5)
SAMPLED_TOKENS = 60_000
UPDATE_FLOPS = 1.56e11  # what BRIDGE's updates come to with those tokens
DEMONSTRATIONS = 16
SFT_STEPS = 40  # about as many as BRIDGE comes to
EQUAL_FLOPS = "equal update FLOPs"
ABLATIONS = "ablations"
WHY = "why"


def get_study(quick: bool = False) -> plan.Study:
  """Returns the study, or a short form of it that shows that it works."""
  settings = _settings()
  searched = _points(LEARNING_RATES)
  if quick:
    settings.training.max_sampled_tokens = 20_000
    searched = _points((3e-4,))  # no search
  arms = _methods(settings.steps, searched)
  regimes = {
    "B": plan.Regime(
      about="rewards too sparse: the base was taught to answer without a step, "
      "and seldom does otherwise",
      stages=("reasoner", "seldom"),
      arms=arms | _equal_flops(settings.steps) | _why() | _ablations(),
    ),
    "A": plan.Regime(
      about="exploration finds the skill: the base was taught to answer "
      "without a step 60% of the time, and writes its steps in the rest",
      stages=("reasoner", "often"),
      arms={n: arm for n, arm in arms.items() if n not in _SECOND_ORDER},
    ),
  }
  if quick:
    few = ("base", "sft", "grpo", "mixed", "bridge")
    short = {name: arms[name] for name in few}
    regimes = {"B": plan.Regime(**{**vars(regimes["B"]), "arms": short})}
  few_seeds = (1, 2, 3)
  return plan.Study(
    name="arithmetic",
    about="A character-level Llama of 0.1M parameters learns chains of one to "
    "four sums of two-digit numbers by 850 steps of SFT, and then to give bare "
    "guesses in place of solutions (95% or 60% of the time), so that it is a "
    "weak reasoner that could do better: `reasoner` in the tables is what it "
    "was before it guessed. Rewards (1 for a right answer) are given for 2,000 "
    f"questions of two and three operations, worked solutions for "
    f"{DEMONSTRATIONS} of them. Tests: 500 other questions of that kind, and "
    "500 of four operations, a kind that the first stage has seen and that "
    "neither rewards nor demonstrations ever show.",
    settings=settings,
    stages=_stages(),
    regimes=regimes,
    tests={
      "same kind": _questions((2, 3), "test", 200 if quick else 500, first=200),
      "harder": _questions((4, 4), "test", 200 if quick else 500),
    },
    test_tokens=56,
    verifier="exact",
    tables={
      plan.MAIN: plan.Table(
        about="All with the same sampled tokens. `sft` samples none: it has "
        f"{SFT_STEPS} steps, about as many as BRIDGE comes to, and so has the "
        "first stage of `sft_then_rl`, at the learning rate that the search "
        "chose for `sft`; its own search is over the rate of the second stage. "
        "`bridge, no gain`, `bridge, one_step`, `unrolled` and `implicit` have "
        "the learning rates of `bridge`.",
        seeds=(1, 2) if quick else (1, 2, 3, 4, 5),
      ),
      EQUAL_FLOPS: plan.Table(
        about="Each runs until its updates have taken as many operations "
        "as BRIDGE's, whatever it samples, with the learning rates of the "
        "table above; `sft` has a search of its own.",
        seeds=few_seeds,
      ),
      WHY: plan.Table(
        about="What BRIDGE's adapter and its gain do: changes of `bridge` as "
        "it was tuned. beta is the learning rate of the adapter, alpha that of "
        "the base; beta 0 leaves the adapter at nothing.",
        seeds=few_seeds,
      ),
      ABLATIONS: plan.Table(
        about="Each a change of `bridge` as it was tuned, or of the method it "
        "names. Flipped: one reward in five is the opposite of what it should "
        "be.",
        seeds=few_seeds,
      ),
    },
    tuning_seed=0,
    reference="bridge",
    findings="" if quick else _findings(),
  )


def _findings():
  """What was found, and what the first design of this study had found."""
  here = pathlib.Path(__file__)
  first = here.parents[2] / "docs/results/arithmetic_first_design.json"
  return findings.fill(
    here.with_suffix(".md").read_text("utf-8"),
    json.loads(first.read_text("utf-8")),
    "first",
  )


def flipped(completion, question) -> float:
  """Returns the exact verifier's reward, or its opposite for one in five."""
  reward = verifiers.exact(completion, question)
  lot = zlib.crc32(f"{question.question}/{completion}".encode()) % 5
  return 1.0 - reward if lot == 0 else reward


_SECOND_ORDER = ("bridge, one_step", "bridge, unrolled", "bridge, implicit")


def _methods(steps, searched):
  """Every way of training that is compared; the budget is in tokens."""
  named = lambda name, **more: plan.Arm(
    changes={"method.name": name, **more}, search=searched
  )
  form = lambda name, **more: plan.Arm(
    changes={"method.name": "bridge", "method.hypergradient": name, **more},
    tuned_as="bridge",
  )
  return {
    "base": plan.Arm(changes=None),
    "reasoner": plan.Arm(changes=None, start="reasoner"),
    "sft": named("sft", steps=min(SFT_STEPS, steps)),
    "grpo": named("grpo"),
    "sft_then_rl": plan.Arm(
      changes=_two_stages(steps), search=searched, takes=_SFT_RATE
    ),
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


_SFT_RATE = {
  "method.sft_then_rl.sft_learning_rate": (
    "sft",
    "optimizer.base.learning_rate",
  )
}


def _two_stages(steps):
  return {
    "method.name": "sft_then_rl",
    "method.sft_then_rl.sft_share": SFT_STEPS / steps,
  }


def _equal_flops(steps):
  """The main methods until their updates have cost what BRIDGE's do."""
  budget = {
    "training.max_sampled_tokens": None,
    "training.max_update_flops": UPDATE_FLOPS,
    "steps": 1000,
    "evaluation.every": 100,
  }
  arm = lambda changes, **more: plan.Arm(
    changes=budget | changes, table=EQUAL_FLOPS, **more
  )
  return {
    "sft, equal FLOPs": arm(
      {"method.name": "sft"}, search=_points(LEARNING_RATES)
    ),
    "grpo, equal FLOPs": arm({"method.name": "grpo"}, tuned_as="grpo"),
    "sft_then_rl, equal FLOPs": arm(
      _two_stages(1000), tuned_as="sft_then_rl", takes=_SFT_RATE
    ),
    "mixed, equal FLOPs": arm({"method.name": "mixed"}, tuned_as="mixed"),
  }


def _why():
  """What shows whether the adapter and the gain do anything."""
  change = lambda **settings: plan.Arm(
    changes={"method.name": "bridge", **settings}, tuned_as="bridge", table=WHY
  )
  beta = "optimizer.adapter.learning_rate"
  return {
    "beta 0": change(**{beta: 0.0}),
    "beta 3e-3": change(**{beta: 3e-3}),
    "beta 1e-2": change(**{beta: 1e-2}),
    "beta 3e-3, no gain": change(**{beta: 3e-3, "method.gain_weight": 0.0}),
    "gain x 5": change(**{"method.gain_weight": 5.0}),
    "beta 3e-3, gain x 5": change(**{beta: 3e-3, "method.gain_weight": 5.0}),
    **{
      f"{name}, dual clip": change(**settings, **{"rl.dual_clip": 3.0})
      for name, settings in {
        "bridge": {},
        "gain x 5": {"method.gain_weight": 5.0},
        "beta 3e-3": {beta: 3e-3},
        "beta 3e-3, gain x 5": {beta: 3e-3, "method.gain_weight": 5.0},
      }.items()
    },
    # The search found two rates about as good for it.
    "sft_then_rl, rate 1e-4": plan.Arm(
      changes=_two_stages(_settings().steps)
      | {"optimizer.base.learning_rate": 1e-4},
      takes=_SFT_RATE,
      table=WHY,
    ),
    "alpha 3e-5, beta 1e-2": change(
      **{beta: 1e-2, "optimizer.base.learning_rate": 3e-5}
    ),
    "alpha 3e-5, beta 1e-2, no gain": change(
      **{
        beta: 1e-2,
        "optimizer.base.learning_rate": 3e-5,
        "method.gain_weight": 0.0,
      }
    ),
  }


def _ablations():
  """Changes of `bridge` one at a time, as it was tuned."""
  arm = lambda name, more: plan.Arm(
    changes={"method.name": name, **more}, tuned_as=name, table=ABLATIONS
  )
  change = lambda **settings: arm("bridge", settings)
  noisy = {"reward.verifiers": ("configs.studies.arithmetic.flipped",)}
  return {
    "lambda 0.3": change(**{"method.penalty": 0.3}),
    "lambda 0.7": change(**{"method.penalty": 0.7}),
    "lambda 0.3 to 0.9": change(
      # As many steps as the budget allows, or the schedule would not end.
      **{"method.penalty": 0.3, "method.penalty_end": 0.9, "steps": SFT_STEPS}
    ),
    "theta-hat one_step": change(**{"method.rl_only_base": "one_step"}),
    "theta-hat resync": change(**{"method.rl_only_base": "resync"}),
    "rank 2": change(**{"adapter.rank": 2, "adapter.alpha": 2.0}),
    "rank 32": change(**{"adapter.rank": 32, "adapter.alpha": 32.0}),
    "beta 1e-5": change(**{"optimizer.adapter.learning_rate": 1e-5}),
    "bridge, flipped": change(**noisy),
    "grpo, flipped": arm("grpo", noisy),
    "mixed, flipped": arm("mixed", noisy),
    "sft_then_rl, flipped": plan.Arm(
      changes=_two_stages(_settings().steps) | noisy,
      tuned_as="sft_then_rl",
      takes=_SFT_RATE,
      table=ABLATIONS,
    ),
  }


def _points(rates):
  return tuple(
    {
      "optimizer.base.learning_rate": rate,
      "optimizer.adapter.learning_rate": rate,
    }
    for rate in rates
  )


def _settings():
  """What all runs of the study share."""
  c = config.default_config()
  c.steps = 120
  c.training.max_sampled_tokens = SAMPLED_TOKENS
  c.model.weights = "set by the study"
  c.model.remat = "none"
  c.training.packing = "off"
  c.training.row_tokens = 48  # no sequence is longer: one program each
  c.adapter.rank = 8
  c.adapter.alpha = 8.0
  c.tokenizer.prompt = "{question}"
  _fill(c.data.questions, _questions((2, 3), "train", 2000))
  _fill(c.data.evaluation, _questions((2, 3), "test", 200))
  c.data.demonstration_share = DEMONSTRATIONS / 2000
  c.data.prompts_per_step = 8
  c.data.demonstrations_per_step = 12
  c.data.max_prompt_tokens = 14
  c.data.max_demonstration_tokens = 48
  c.reward.verifiers = ("exact",)
  c.reward.workers = 1
  c.rollout.samples_per_prompt = 8
  c.rollout.max_new_tokens = 36
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
  reasoner.training.max_sampled_tokens = None  # it samples none
  reasoner.training.row_tokens = 64  # up to four operations
  reasoner.data.max_prompt_tokens = 20
  reasoner.data.max_demonstration_tokens = 64
  reasoner.rollout.max_new_tokens = 44
  reasoner.seed = 1
  reasoner.data.demonstration_share = 1.0
  reasoner.data.demonstrations_per_step = 64
  _fill(reasoner.data.questions, _questions((1, 4), "train", 20_000, seed=1))
  _fill(reasoner.data.evaluation, _questions((3, 4), "test", 200))
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
