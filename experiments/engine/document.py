"""docs/results.md and its like: a study's numbers as a Markdown document."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bilevel_jax.reporting import text
from experiments.engine import findings


def render(numbers: Mapping[str, Any], apart: bool = False) -> str:
  """Returns the document; every number in it is in `numbers`.

  Args:
    numbers: what experiments/study.py writes as JSON.
    apart: whether what was found has a page of its own, the summary.
  """
  tokens = numbers["sampled_tokens"]
  budget = "" if tokens is None else f"{tokens:,} sampled tokens, and "
  lines = [
    f"# Results: {numbers['name']}",
    "",
    "This page is written by `experiments/study.py` from "
    f"`{numbers['json']}`; no number of a result in it was typed.",
    "",
    numbers["about"],
    "",
    f"Command: `{numbers['command']}`. Hardware: {numbers['hardware']}. "
    f"Training runs done: {numbers['runs_done']} of {numbers['runs_wanted']}, "
    f"searches included; {numbers['hours']:.1f} hours of training in all. "
    f"Versions: {numbers['versions']}.",
    "",
    f"Budget of a run: {budget}at most {numbers['steps']} steps. Update FLOPs "
    "are the model's floating-point operations in gradients and log-probs "
    "(`training/update_flops`); they are not known of hypergradients of second "
    "order. Learning rates: each method's own search over the same points, one "
    "seed that is not reported, by accuracy on "
    f"{numbers['validation_questions']} validation questions. "
    "Accuracies are greedy, mean over seeds, with 95% intervals (Student's t "
    "over seeds; the base: Wilson's over questions). Differences: a table's "
    "reference less the row, paired by seed and question, both as random "
    "effects; p by Holm's method within a table's column.",
  ]
  if numbers["findings"] and not apart:
    lines += ["", "## What was found", ""]
    lines.append(findings.fill(numbers["findings"], numbers))
  for name, regime in numbers["regimes"].items():
    lines += ["", *_regime(name, regime, numbers)]
  return "\n".join(lines) + "\n"


def summary(
  numbers: Mapping[str, Any], details: str, picture: str | None
) -> str:
  """Returns what was found, as a page of its own.

  Args:
    details: path of the document of every number, from this page.
    picture: path of the figure, from this page; None: there is none.
  """
  lines = [findings.fill(numbers["findings"], numbers).strip(), ""]
  if picture is not None:
    lines += [f"![{numbers['name']}]({picture})", ""]
  lines += [
    f"This page is written by `{numbers['command']}` from `{numbers['json']}`; "
    "no number of a result in it was typed. Training runs done: "
    f"{numbers['runs_done']} of {numbers['runs_wanted']}. Every table, with "
    f"doses, costs and what was learned: [details]({details}).",
  ]
  return "\n".join(lines) + "\n"


def _regime(
  name: str, regime: Mapping[str, Any], numbers: Mapping[str, Any]
) -> Iterator[str]:
  arms, tests = regime["arms"], numbers["tests"]
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
  for table, about in numbers["tables"].items():
    rows = {a: r for a, r in arms.items() if r["seeds"] and r["table"] == table}
    if not rows:
      continue
    head = ["", "seeds", "learning rate"]
    for test in tests:
      head += [test, f"{numbers['references'][table]} less this, {test}", "p"]
    yield from ("", f"### {name}: {table}", "", about, "")
    yield from _table(
      head, [_quality(*row, arms, tests) for row in rows.items()]
    )
    costs = {arm: row["cost"] for arm, row in rows.items() if row["cost"]}
    shown = {
      heading: column
      for heading, column in _COSTS.items()
      if any(cost.get(column[0]) is not None for cost in costs.values())
    }
    yield ""
    yield from _table(
      ["", *shown], [_cells(*row, shown) for row in costs.items()]
    )
  for test in tests:
    yield from _pass_rates(name, arms, test)
  yield from _weights(name, arms)
  inside = {
    arm: row["cost"]
    for arm, row in arms.items()
    if row["cost"] and _IN_ALL in row["cost"]
  }
  if inside:
    yield from ("", f"### {name}: inside BRIDGE", "", _ABOUT_INSIDE, "")
    yield from _table(
      ["", *_INSIDE], [_cells(*row, _INSIDE) for row in inside.items()]
    )


# Heading: name of the number, its format.
_COSTS = {
  "steps": ("steps", ",.0f"),
  "sampled tokens": ("tokens", ",.0f"),
  "demonstrations seen": ("demonstrations", ",.0f"),
  "SFT's share": ("mix/sft_share", ".2f"),
  "update FLOPs": ("flops", ".3g"),
  "seconds of training": ("seconds", ".1f"),
}
_IN_ALL = "bilevel/direct_norm"  # of BRIDGE's arms
_INSIDE = {
  "gain": ("bilevel/cooperative_gain", "+.4f"),
  "its standard error": ("bilevel/cooperative_gain_se", ".4f"),
  "RL-only copy clipped": ("bilevel/rl_only_clip_fraction", ".1%"),
  "KL to the RL-only base, end": ("bilevel/kl_to_rl_only", ".3f"),
  "SFT's part": ("bilevel/direct_norm", ".4f"),
  "the gain's part": ("bilevel/implicit_norm", ".4f"),
  "cosine of the two": ("bilevel/parts_cosine", "+.3f"),
  "adapter, end": ("bilevel/adapter_delta_norm", ".4f"),
  "SFT loss, end": ("sft/loss", ".3f"),
}
_ABOUT_INSIDE = (
  "Means over steps and seeds. The gain and its standard error are of one "
  "step, in reward. The two parts are norms in the adapter's gradient, as "
  "weighted by lambda, before `method.bridge.gain_weight`. The adapter: "
  "norm of its change of the weights over norm of the weights."
)


def _pass_rates(name: str, arms: Mapping[str, Any], test: str) -> Iterator[str]:
  """Yields accuracy and length of answers by what the base can do."""
  rows = {
    arm: found
    for arm, given in arms.items()
    if (found := (given.get("by_pass_rate") or {}).get(test))
  }
  if not rows:
    return
  yield from ("", f"### {name}: {test}, by what the base can do", "")
  yield (
    "Questions by the share of the base's sampled answers that are right. "
    "Accuracy, and in brackets the mean tokens of an answer; means over seeds."
  )
  yield ""
  bins = next(iter(rows.values()))
  head = [
    (f"up to {b['up_to']:.0%}" if b["up_to"] else "never right")
    + f", {b['questions']} questions"
    for b in bins
  ]
  yield from _table(
    ["", *head],
    [
      [arm, *(f"{b['accuracy']:.1%} ({b['tokens']:.0f})" for b in found)]
      for arm, found in rows.items()
    ],
  )


def _weights(name: str, arms: Mapping[str, Any]) -> Iterator[str]:
  """Yields what runs learned of their demonstrations."""
  learned = {
    arm: [run["weights"] for run in given["runs"].values() if "weights" in run]
    for arm, given in arms.items()
  }
  learned = {arm: found for arm, found in learned.items() if found}
  if not learned:
    return
  yield from ("", f"### {name}: learned weights", "", _ABOUT_WEIGHTS, "")
  each = lambda values: " ".join(f"{value:.2f}" for value in values)
  yield from _table(
    ["", "AUROC, mean weight", "AUROC, final weight", "final weight by group"],
    [
      [
        arm,
        *(
          each(run["auroc"][of] for run in found if of in run["auroc"])
          for of in ("mean_weight", "weight")
        ),
        "; ".join(
          f"{group} {each(run['groups'][group]['weight'] for run in found)}"
          for group in found[0]["groups"]
        ),
      ]
      for arm, found in learned.items()
    ],
  )


_ABOUT_WEIGHTS = (
  "AUROC: how often a good demonstration has a larger weight than a spoiled "
  "one, of the mean weight over the run and of the final one; and the mean "
  "final weight of each group, one value for each seed."
)


def _quality(
  arm: str, given: Mapping[str, Any], arms: Mapping[str, Any], tests: Any
) -> list[str]:
  searched = arms[given["tuned_as"] or arm]["search"]
  rate = ""
  if given["changes"] is not None and searched is not None:
    (_, first), *others = searched["chosen"].items()
    rate = ", ".join(
      [f"{first:g}"]
      + [
        f"{name.split('.')[-1]} {value:g}"
        for name, value in others
        if not name.startswith("optimizer.adapter.")
      ]
    )
  cells = [arm, str(len(given["seeds"])), rate]
  for test in tests:
    against = given.get("reference_minus_this", {}).get(test)
    cells.append(text.estimate(given["tests"][test]))
    if against is None:
      cells += ["", ""]
      continue
    cells.append(text.estimate(against["difference"], sign="+"))
    cells.append(text.p_value(against["p_holm"]))
  return cells


def _cells(
  arm: str,
  found: Mapping[str, float | None],
  columns: Mapping[str, tuple[str, str]],
) -> list[str]:
  values = [(found.get(name), form) for name, form in columns.values()]
  return [arm, *("" if v is None else f"{v:{form}}" for v, form in values)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
  yield f"| {' | '.join(head)} |"
  yield "|" + "---|" * len(head)
  for row in rows:
    yield f"| {' | '.join(row)} |"
