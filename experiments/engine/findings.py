"""Prose about a study's results, whose numbers are places in its JSON.

`[[B / bridge / same kind]]` is the accuracy of an arm of a regime in a test
with its interval, `[[B / bridge / same kind / value]]` the accuracy alone,
`[[B / sft / same kind / difference]]` the reference less the arm,
`[[B / sft / same kind / more]]` the arm less the reference,
`[[B / sft / same kind / way]]` the median over seeds of how much of the way it
comes from the reference to the oracle,
`[[B / bridge / cost / seconds]]` a mean of the cost, `[[B / bridge / seeds]]`
how many seeds these are of,
`[[B / bridge / search / optimizer.base.learning_rate]]` what a search chose,
and `[[runs_done]]` a number of the whole. `[[old: B / bridge / same kind]]` is
in another study's results, which `fill` is given under that name. A number that
is not there yet is "(not run)".
"""

import re
import statistics
from collections.abc import Mapping
from typing import Any

from bilevel_jax import errors
from bilevel_jax.reporting.text import estimate

_PLACE = re.compile(r"\[\[(?:(\w+):)?([^\]]+)\]\]")
_MISSING = "(not run)"


def fill(text: str, numbers: Mapping[str, Any], name: str | None = None) -> str:
  """Returns the text with the numbers of one study.

  Args:
    text: Markdown, see the head of this file.
    numbers: what experiments/study.py writes as JSON.
    name: that stands before its places, None for those with no name; those
      with another name are left as they are.

  Raises:
    ConfigError: a place names no regime, arm or number of the study.
  """

  def number(found: re.Match[str]) -> str:
    of, place = found.groups()
    if of != name:
      return found.group()
    try:
      return _written(numbers, " ".join(place.split()).split(" / "))
    except KeyError as error:
      raise errors.ConfigError(
        f"findings: no {error} in the results, for [[{place}]]"
      ) from None

  return _PLACE.sub(number, text)


def _written(whole: Mapping[str, Any], place: list[str]) -> str:
  if len(place) == 1:
    return f"{whole[place[0]]:,}"
  regime, name, kind, *what = place
  arm = whole["regimes"][regime]["arms"][name]
  if kind == "seeds":
    return str(len(arm["seeds"]))
  if not arm["seeds"]:
    return _MISSING
  if kind == "cost":
    value = arm["cost"].get(what[0])
    return _MISSING if value is None else f"{value:.3g}"
  if kind == "search":
    searched = whole["regimes"][regime]["arms"][arm["tuned_as"] or name]
    return f"{searched['search']['chosen'][what[0]]:g}"
  if what == ["difference"]:
    against = arm["reference_minus_this"][kind]["difference"]
    return estimate(against, sign="+") or _MISSING
  if what == ["more"]:
    value, low, high = arm["reference_minus_this"][kind]["difference"]
    return estimate([-value, -high, -low], sign="+") or _MISSING
  if what == ["way"]:
    each = arm["of_the_way"][kind]
    return f"{statistics.median(each):.0%}" if each else _MISSING
  value = estimate(arm["tests"][kind])
  return value.partition(" ")[0] if what == ["value"] else value
