"""When does the second level pay? Demonstrations of which some are spoiled.

    python experiments/study.py experiments/studies/spoiled.py
    python experiments/study.py experiments/studies/spoiled.py --quick

The settings are those of configs/spoiled_demonstrations.py. Four kinds of
spoiled demonstrations, in three shares, and none: everywhere the main arms, and
where half or three quarters are guesses, or none is, all of them.

Hardware: CPU. Cost: a run takes 10 to 30 seconds of one core, the whole study
about four hours of one core; --quick (one seed of five methods, half of the
demonstrations guesses) under ten minutes on two.

Expected: docs/results.md has what was found.
"""

import pathlib

from configs import spoiled_demonstrations
from experiments.engine import plan
from experiments.studies import arithmetic
from experiments.studies.parts import spoiled_arms as arms
from experiments.studies.parts import spoiled_picture

KINDS = {
  "guess": "right answers without a step",
  "slip": "solutions with one wrong step and the right answer",
  "wrong_answer": "solutions whose last step, and so the answer, is wrong",
  "other_operation": "solutions of a question with another operator",
}
SHARES = (0.25, 0.5, 0.75)
SEARCHED = "guess 50%"
CLEAN = "clean"
WHOLE = (SEARCHED, "guess 75%", CLEAN)  # with all arms
# A checker of answers takes these for right: it leaves what it is given.
_UNSEEN = ("guess", "slip")


def get_study(quick: bool = False) -> plan.Study:
  """Returns the study, or a short form of it that shows that it works."""
  settings = _settings()
  seeds = (1,) if quick else (1, 2, 3, 4, 5)
  every = arms.all_arms(settings.steps)
  regimes = {
    name: _regime(name, kind, share, every)
    for name, kind, share in (
      (SEARCHED, "guess", 0.5),
      (CLEAN, "guess", 0.0),
      ("guess 75%", "guess", 0.75),
      *(
        (f"{kind} {share:.0%}", kind, share)
        for kind in KINDS
        for share in SHARES
        if (kind, share) not in (("guess", 0.5), ("guess", 0.75))
      ),
    )
  }
  regimes |= _harder(every)
  if quick:
    settings.training.max_sampled_tokens = 20_000
    few = (
      "base",
      "mixed",
      "mixed, good ones alone",
      "grpo",
      "bridge, demonstrations",
    )
    regimes = {
      SEARCHED: plan.Regime(
        about=regimes[SEARCHED].about,
        changes=regimes[SEARCHED].changes,
        arms={name: arms.without_search(every[name]) for name in few},
      )
    }
  return plan.Study(
    name="spoiled",
    about="A policy of 0.1M parameters that was taught to answer chains of "
    "sums without a step (1.8% right) learns from rewards for 2,000 questions "
    f"and from {spoiled_demonstrations.DEMONSTRATIONS} demonstrations, of "
    "which a share is spoiled. Each seed has other demonstrations, too.",
    settings=settings,
    regimes=regimes,
    tests={"same kind": arithmetic.get_study().tests["same kind"]},
    test_tokens=56,
    verifier="exact",
    tables=arms.tables(seeds),
    tuning_seed=0,
    reference="mixed",
    good="worked",
    base="base",
    oracle=arms.ORACLE,
    picture=_picture,
    findings=""
    if quick
    else pathlib.Path(__file__).with_suffix(".md").read_text("utf-8"),
  )


def _picture(whole):
  return spoiled_picture.picture(whole, KINDS, SHARES, CLEAN)


def _settings():
  c = spoiled_demonstrations.get_config("clean")
  for kind in KINDS:
    c.data.demonstrations.task_options[f"{kind}_share"] = 0.0
  validation = arithmetic.get_study().settings.data.evaluation
  c.data.evaluation.first = validation.first
  c.data.evaluation.count = validation.count
  c.logging.progress = False
  return c


def _harder(every):
  """Cases that are harder for what learns weights."""
  of = lambda *names: {name: every[name] for name in names}
  guesses = "data.demonstrations.task_options.guess_share"
  sparse = {"data.prompts_per_step": 2}
  learned = "bridge, demonstrations"
  return {
    "seen once": plan.Regime(
      about="of 2,000 demonstrations half are right answers without a step, "
      "and a run sees each at most once",
      changes={guesses: 0.5, "data.demonstrations.count": 2000},
      arms=of(
        *("mixed", arms.ORACLE, learned, "bridge, groups"),
        *("features alone", "each alone"),
      ),
      searched_in=SEARCHED,
    ),
    **{
      f"sparse, {kind} 75%": plan.Regime(
        about="16 rollouts a step, so that many steps have no reward to learn "
        f"from; 75% of the demonstrations are {KINDS[kind]}",
        changes={f"data.demonstrations.task_options.{kind}_share": 0.75}
        | sparse,
        arms=of("mixed", learned),
        searched_in=SEARCHED,
      )
      for kind in ("guess", "slip")
    },
  }


def _regime(name, kind, share, every):
  chosen = every
  if name not in WHOLE:
    main = [n for n in arms.main_arms() if n != "grpo"]
    chosen = {n: every[n] for n in main}
  if not share or kind in _UNSEEN:
    chosen = {n: a for n, a in chosen.items() if n != arms.CHECKED}
  if not share:
    left_out = (arms.ORACLE, "bridge, groups")
    chosen = {n: a for n, a in chosen.items() if n not in left_out}
  about = f"about {share:.0%} of the demonstrations are {KINDS[kind]}"
  return plan.Regime(
    about=about if share else "every demonstration is a worked solution",
    changes={f"data.demonstrations.task_options.{kind}_share": share},
    arms=chosen,
    searched_in=None if name == SEARCHED else SEARCHED,
  )
