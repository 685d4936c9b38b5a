"""What a field of the schema is made of."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

_HOLDS = {
  "at_least": lambda value, bound: value >= bound,
  "above": lambda value, bound: value > bound,
  "at_most": lambda value, bound: value <= bound,
  "below": lambda value, bound: value < bound,
}
_MOST = 2**31  # counts are 32-bit integers on devices


def setting(
  default: Any, doc: str, *, may_be_empty: bool = False, **rules: float
) -> Any:
  """Returns a field with a default, its meaning, and bounds on its value.

  Args:
    doc: one line of meaning, units included.
    may_be_empty: whether a text may be empty though that is not the default.
    **rules: any of at_least, above, at_most, below.

  A number must be finite, and an integer below 2^31 unless a rule says less or
  more.
  """
  empty = may_be_empty or default == ""
  metadata = {"doc": doc, "rules": rules, "may_be_empty": empty}
  if isinstance(default, (dict, list)):
    return dataclasses.field(
      default_factory=lambda: type(default)(default), metadata=metadata
    )
  return dataclasses.field(default=default, metadata=metadata)


def section(cls: type, doc: str) -> Any:
  """Returns a field that is a group of settings of its own."""
  return dataclasses.field(
    default_factory=cls, metadata={"doc": doc, "rules": {}}
  )


_UNITS = {"MB": 1e6, "GB": 1e9, "MIB": 2**20, "GIB": 2**30}


def byte_count(text: str) -> int:
  """Returns the bytes that a text such as 80GB or 1.5 GiB means.

  Raises:
    ValueError: it is no number with a unit; the message goes on after a name.
  """
  found = re.fullmatch(
    r"(\d{1,9}(?:\.\d{1,9})?) ?(\w+)", text.strip(), re.ASCII
  )
  if found is None or found[2].upper() not in _UNITS:
    raise ValueError(
      f"must be a number with one of MB, GB, MiB, GiB, got {text!r}"
    )
  return int(float(found[1]) * _UNITS[found[2].upper()])


def must_be(value: float, rules: Mapping[str, float]) -> str | None:
  """Returns what a number must be, where it is not: "at least 0, below 1"."""
  words = [
    f"{rule.replace('_', ' ')} {bound_text(b)}" for rule, b in rules.items()
  ]
  if isinstance(value, float) and not math.isfinite(value):
    return ", ".join(["a finite number", *words])
  if isinstance(value, int) and not {"at_most", "below"} & rules.keys():
    rules = {**rules, "below": _MOST}
    if value >= _MOST:
      words.append(f"below {bound_text(_MOST)}")
  kept = all(_HOLDS[rule](value, bound) for rule, bound in rules.items())
  return None if kept else ", ".join(words)


def bound_text(bound: float) -> str:
  """Returns a bound as it is written in messages and documents."""
  powers = {float(2**power): f"2^{power}" for power in (31, 32, 63)}
  return powers.get(bound, str(bound))
