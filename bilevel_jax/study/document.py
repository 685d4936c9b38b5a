"""docs/results.md and its like: a study's numbers as a Markdown document."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bilevel_jax.comparison import page


def render(numbers: Mapping[str, Any]) -> str:
  """Returns the document; every number in it is in `numbers`.

  Args:
    numbers: what tools/study.py writes as JSON.
  """
  lines = [
    f"# Results: {numbers['name']}",
    "",
    "This page is written by `tools/study.py` from "
    f"`{numbers['json']}`; no number in it was typed.",
    "",
    numbers["about"],
    "",
    f"Command: `{numbers['command']}`. Hardware: {numbers['hardware']}. "
    f"Training runs done: {numbers['runs_done']} of {numbers['runs_wanted']}, "
    f"searches included; {numbers['hours']:.1f} hours of training in all. "
    f"Versions: {numbers['versions']}.",
    "",
    f"Budget of a run: {numbers['sampled_tokens']:,} sampled tokens, and at "
    f"most {numbers['steps']} steps. An update of `bridge` takes three "
    "gradients, of `mixed` two, of most others one: at the same sampled tokens "
    "the optimiser's work is not the same, and it is not made so. "
    "Learning rates: each method's own search over the same points, one seed "
    "that is not reported, by accuracy on 200 validation questions. "
    "Accuracies are greedy, mean over seeds, with 95% intervals (Student's t "
    "over seeds; the base: Wilson's over questions). Differences: "
    f"`{numbers['reference']}` less the row, paired by seed and question, both "
    "as random effects; p by Holm's method within a column.",
  ]
  for name, regime in numbers["regimes"].items():
    lines += ["", *_regime(name, regime, numbers["tests"])]
  return "\n".join(lines) + "\n"


def _regime(
  name: str, regime: Mapping[str, Any], tests: Sequence[str]
) -> Iterator[str]:
  arms = regime["arms"]
  yield f"## Regime {name}"
  yield ""
  yield f"{regime['about'][0].upper()}{regime['about'][1:]}."
  missing = [
    f"{arm} ({len(given['seeds'])} of {given['seeds_wanted']} seeds)"
    for arm, given in arms.items()
    if len(given["seeds"]) < given["seeds_wanted"]
  ]
  yield ""
  yield (
    f"Not run yet, or not with all seeds: {', '.join(missing)}."
    if missing
    else "All of its runs are done."
  )
  main = {arm: a for arm, a in arms.items() if a["seeds"] and not a["ablation"]}
  if not main:
    return
  head = ["method", "seeds", "learning rate"]
  for test in tests:
    head += [test, f"reference less this, {test}", "p"]
  yield ""
  yield from _table(head, [_quality(*row, arms, tests) for row in main.items()])
  yield ""
  yield from _table(
    [
      "method",
      "steps",
      "sampled tokens",
      "seconds of training",
      "mean gain",
      "RL-only branch clipped",
    ],
    [_cost(arm, given["cost"]) for arm, given in main.items() if given["cost"]],
  )
  ablations = {
    arm: a for arm, a in arms.items() if a["seeds"] and a["ablation"]
  }
  if ablations:
    yield ""
    yield "Ablations, each a change of the method it is named by:"
    yield ""
    yield from _table(
      head, [_quality(*row, arms, tests) for row in ablations.items()]
    )


def _quality(
  arm: str, given: Mapping[str, Any], arms: Mapping[str, Any], tests: Any
) -> list[str]:
  searched = arms[given["tuned_as"] or arm]["search"]
  rate = ""
  if given["changes"] is not None and searched is not None:
    rate = f"{next(iter(searched['chosen'].values())):g}"
  cells = [arm, str(len(given["seeds"])), rate]
  for test in tests:
    against = given.get("reference_minus_this", {}).get(test)
    cells.append(page.estimate(given["tests"][test]))
    if against is None:
      cells += ["", ""]
      continue
    p = against["p"] if given["ablation"] else against["p_holm"]
    cells += [page.estimate(against["difference"], sign="+"), _p(p)]
  return cells


def _cost(arm: str, cost: Mapping[str, float]) -> list[str]:
  gain = cost.get("bilevel/cooperative_gain")
  clipped = cost.get("bilevel/rl_only_clip_fraction")
  return [
    arm,
    f"{cost['steps']:.0f}",
    f"{cost['tokens']:,.0f}",
    f"{cost['seconds']:.1f}",
    "" if gain is None else f"{gain:+.4f}",
    "" if clipped is None else f"{clipped:.1%}",
  ]


def _p(value: float | None) -> str:
  if value is None or math.isnan(value):
    return ""
  return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
  yield f"| {' | '.join(head)} |"
  yield "|" + "---|" * len(head)
  for row in rows:
    yield f"| {' | '.join(row)} |"
