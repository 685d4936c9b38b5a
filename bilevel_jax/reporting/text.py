"""What a reader sees of a number, and of a text that a model wrote."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

Known = float | None  # None and NaN are unknown, and shown as nothing


def interval(low: Known, high: Known, sign: str = "") -> str:
  """Returns the bounds of a share as text.

  Args:
    sign: "+" shows those of a difference.
  """
  low, high = _number(low), _number(high)
  if math.isnan(low + high):
    return ""
  return f"{low:{sign}.1%} to {high:{sign}.1%}"


def estimate(found: Sequence[Known], sign: str = "") -> str:
  """Returns a share and its interval as text.

  Args:
    found: (value, low, high), each a share or unknown.
    sign: "+" shows that of a difference.
  """
  value, low, high = found
  if math.isnan(value := _number(value)):
    return ""
  bounds = interval(low, high, sign)
  return f"{value:{sign}.1%}" + (f" ({bounds})" if bounds else "")


def p_value(p: Known) -> str:
  """Returns a p-value as text."""
  if math.isnan(p := _number(p)):
    return ""
  return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(value: Known) -> str:
  """Returns how many there are as text."""
  if math.isnan(value := _number(value)):
    return ""
  return f"{value:,.0f}" if value < 1e9 else f"{value:.2e}"


def setting(value: Any) -> str:
  """Returns the value of a setting as text, as JSON has it."""
  return json.dumps(value, ensure_ascii=False, default=str)


def verdict(record: Mapping[str, Any]) -> tuple[str, bool]:
  """Returns a completion's reward as text, and whether it is a right answer."""
  reward = record.get("reward")
  if reward is None:
    return "not scored", False
  return f"reward {reward:.2f}", bool(record.get("correct", reward >= 1))


def visible(text: str) -> str:
  """Returns text whose control characters are visible and change nothing.

  New lines stay, and tabs become spaces; everything else that moves the
  cursor, colours, or turns the direction of reading is written as its escape.

  Args:
    text: of a model, so anything at all.
  """
  text = text.replace("\r\n", "\n").replace("\t", "  ")
  return "".join(
    c if c == "\n" or c.isprintable() else ascii(c)[1:-1] for c in text
  )


def _number(value: Known) -> float:
  return math.nan if value is None else value
