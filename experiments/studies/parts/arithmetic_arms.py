"""The ways of training that experiments/studies/arithmetic.py compares."""

from experiments.engine import plan

LEARNING_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 1e-5)
SAMPLED_TOKENS = 60_000
UPDATE_FLOPS = 1.56e11  # what BRIDGE's updates come to with those tokens
PROMPTS = 8  # of a step
SFT_STEPS = 40  # about as many as BRIDGE comes to
EQUAL_FLOPS = "equal update FLOPs"
ABLATIONS = "ablations"
WHY = "why"
FOUR_TIMES = "four times the rollouts"


SECOND_ORDER = ("bridge, one_step", "bridge, unrolled", "bridge, implicit")


def tables(quick):
  """What the arms of each table have in common."""
  few_seeds = (1, 2, 3)
  more = (
    f"A step has {4 * PROMPTS} prompts, not {PROMPTS}, and a run four times "
    "the sampled tokens"
  )
  return {
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
      "the base; beta 0 leaves the adapter at nothing. One level: `mixed` "
      "with `method.mixed.adapter`, which moves base and adapter by one "
      f"weighted loss. Rollouts x 4: {more[0].lower()}{more[1:]}.",
      seeds=few_seeds,
    ),
    FOUR_TIMES: plan.Table(
      about=f"{more}. Each method has a search of its own over four points: of "
      "alpha, and for `bridge` and `mixed with adapter` of alpha and beta "
      "together. The learning rate in the table is alpha. `bridge x 4, no "
      "gain` has the rates of `bridge x 4`.",
      seeds=(1, 2, 3, 4, 5),
      reference="bridge x 4",
    ),
    ABLATIONS: plan.Table(
      about="Each a change of `bridge` as it was tuned, or of the method it "
      "names. Flipped: one reward in five is the opposite of what it should "
      "be.",
      seeds=few_seeds,
    ),
  }


def methods(steps, searched):
  """Every way of training that is compared; the budget is in tokens."""
  named = lambda name, **more: plan.Arm(
    changes={"method.name": name, **more}, search=searched
  )
  form = lambda name, **more: plan.Arm(
    changes={
      "method.name": "bridge",
      "method.bridge.hypergradient": name,
      **more,
    },
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
    "bridge, no gain": form("penalty", **{"method.bridge.gain_weight": 0.0}),
    "alternating": named("alternating"),
    "chord": named("chord"),
    "hpt": named("hpt"),
    "luffy": named("luffy"),
    "bridge, one_step": form(
      "one_step", **{"method.bridge.rl_only_base": "one_step"}
    ),
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


def equal_flops():
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
      {"method.name": "sft"}, search=points(LEARNING_RATES)
    ),
    "grpo, equal FLOPs": arm({"method.name": "grpo"}, tuned_as="grpo"),
    "sft_then_rl, equal FLOPs": arm(
      _two_stages(1000), tuned_as="sft_then_rl", takes=_SFT_RATE
    ),
    "mixed, equal FLOPs": arm({"method.name": "mixed"}, tuned_as="mixed"),
  }


def why(steps):
  """What shows whether the adapter and the gain do anything."""
  change = lambda **settings: plan.Arm(
    changes={"method.name": "bridge", **settings}, tuned_as="bridge", table=WHY
  )
  beta = "optimizer.adapter.learning_rate"
  no_gain = {"method.bridge.gain_weight": 0.0}
  return {
    "beta 0": change(**{beta: 0.0}),
    "beta 3e-3": change(**{beta: 3e-3}),
    "beta 1e-2": change(**{beta: 1e-2}),
    "beta 3e-3, no gain": change(**{beta: 3e-3}, **no_gain),
    "gain x 5": change(**{"method.bridge.gain_weight": 5.0}),
    "beta 3e-3, gain x 5": change(
      **{beta: 3e-3, "method.bridge.gain_weight": 5.0}
    ),
    **{
      f"{name}, dual clip": change(**settings, **{"rl.dual_clip": 3.0})
      for name, settings in {
        "bridge": {},
        "gain x 5": {"method.bridge.gain_weight": 5.0},
        "beta 3e-3": {beta: 3e-3},
        "beta 3e-3, gain x 5": {beta: 3e-3, "method.bridge.gain_weight": 5.0},
      }.items()
    },
    "rollouts x 4": change(**_FOUR_TIMES),
    "rollouts x 4, no gain": change(**_FOUR_TIMES, **no_gain),
    "beta 3e-3, one level": plan.Arm(
      changes={
        "method.name": "mixed",
        "method.mixed.adapter": True,
        beta: 3e-3,
      },
      tuned_as="mixed",
      table=WHY,
    ),
    # The search found two rates about as good for it.
    "sft_then_rl, rate 1e-4": plan.Arm(
      changes=_two_stages(steps) | {"optimizer.base.learning_rate": 1e-4},
      takes=_SFT_RATE,
      table=WHY,
    ),
    "alpha 3e-5, beta 1e-2": change(
      **{beta: 1e-2, "optimizer.base.learning_rate": 3e-5}
    ),
    "alpha 3e-5, beta 1e-2, no gain": change(
      **{beta: 1e-2, "optimizer.base.learning_rate": 3e-5}, **no_gain
    ),
  }


_FOUR_TIMES = {
  "data.prompts_per_step": 4 * PROMPTS,
  "training.max_sampled_tokens": 4 * SAMPLED_TOKENS,
}


def four_times():
  """Whether the gain pays where its gradient has half the noise."""
  arm = lambda name, more, **how: plan.Arm(
    changes={"method.name": name, **_FOUR_TIMES, **more},
    table=FOUR_TIMES,
    **how,
  )
  alone = points((3e-4, 1e-4, 6e-4, 1e-3))
  both = tuple(
    {
      "optimizer.base.learning_rate": alpha,
      "optimizer.adapter.learning_rate": beta,
    }
    for alpha, beta in ((3e-4, 3e-4), (3e-4, 3e-3), (1e-4, 3e-3), (1e-3, 3e-3))
  )
  return {
    "bridge x 4": arm("bridge", {}, search=both),
    "bridge x 4, no gain": arm(
      "bridge", {"method.bridge.gain_weight": 0.0}, tuned_as="bridge x 4"
    ),
    "mixed x 4": arm("mixed", {}, search=alone),
    "mixed with adapter x 4": arm(
      "mixed", {"method.mixed.adapter": True}, search=both
    ),
    "grpo x 4": arm("grpo", {}, search=alone),
  }


def ablations(steps):
  """Changes of `bridge` one at a time, as it was tuned."""
  arm = lambda name, more: plan.Arm(
    changes={"method.name": name, **more}, tuned_as=name, table=ABLATIONS
  )
  change = lambda **settings: arm("bridge", settings)
  noisy = {"reward.verifiers": ("experiments.studies.arithmetic.flipped",)}
  return {
    "lambda 0.3": change(**{"method.bridge.penalty": 0.3}),
    "lambda 0.7": change(**{"method.bridge.penalty": 0.7}),
    "lambda 0.3 to 0.9": change(
      # As many steps as the budget allows, or the schedule would not end.
      **{
        "method.bridge.penalty": 0.3,
        "method.bridge.penalty_end": 0.9,
        "steps": SFT_STEPS,
      }
    ),
    "theta-hat one_step": change(**{"method.bridge.rl_only_base": "one_step"}),
    "theta-hat resync": change(**{"method.bridge.rl_only_base": "resync"}),
    "rank 2": change(**{"adapter.rank": 2, "adapter.alpha": 2.0}),
    "rank 32": change(**{"adapter.rank": 32, "adapter.alpha": 32.0}),
    "beta 1e-5": change(**{"optimizer.adapter.learning_rate": 1e-5}),
    "bridge, flipped": change(**noisy),
    "grpo, flipped": arm("grpo", noisy),
    "mixed, flipped": arm("mixed", noisy),
    "sft_then_rl, flipped": plan.Arm(
      changes=_two_stages(steps) | noisy,
      tuned_as="sft_then_rl",
      takes=_SFT_RATE,
      table=ABLATIONS,
    ),
  }


def points(rates):
  return tuple(
    {
      "optimizer.base.learning_rate": rate,
      "optimizer.adapter.learning_rate": rate,
    }
    for rate in rates
  )
