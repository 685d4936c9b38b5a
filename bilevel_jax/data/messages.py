"""Messages of a dialogue in one form: role and content, as text."""

import math
from collections.abc import Mapping
from typing import Any

from bilevel_jax import errors
from bilevel_jax.data import json_lines

_THEIRS = {
  "human": "user",
  "gpt": "assistant",
  "chatgpt": "assistant",
  "bing": "assistant",
  "bard": "assistant",
  "model": "assistant",
  "function": "tool",
  "observation": "tool",
  "function_response": "tool",
}
ROLES = ("system", "developer", "user", "assistant", "tool")


def parsed(message: Any, where: str) -> dict[str, Any]:
  """Returns a message with role and content, and what else it has.

  Args:
    message: in OpenAI's form or ShareGPT's, its content a text or parts of it.

  Raises:
    ConfigError: it is no message, has a role that is not known, or content
      that is not text.
  """
  if not isinstance(message, Mapping):
    raise errors.ConfigError(
      f"{where} must be a message, an object with role and content, got "
      f"{json_lines.kind(message)}"
    )
  # Arrow has a column for each key of any message.
  found = {k: v for k, v in message.items() if v is not None}
  for theirs, ours in (("from", "role"), ("value", "content")):
    if theirs in found and ours not in found:
      found[ours] = found.pop(theirs)
  role = found.get("role")
  found["role"] = _THEIRS.get(str(role), role)
  if found["role"] not in ROLES:
    raise errors.ConfigError(
      f"{where} must have a role of {', '.join(ROLES)}, got {role!r}"
    )
  content = found.get("content") or ""
  if isinstance(content, (list, tuple)):
    content = "".join(_part(part, where) for part in content)
  if not isinstance(content, str):
    raise errors.ConfigError(
      f"{where} must have text as its content, got {json_lines.kind(content)}"
    )
  json_lines.check_text(content, where)
  # Templates ask whether a message that calls tools says anything else.
  silent = not content and "tool_calls" in found
  found["content"] = message.get("content") if silent else content
  if "weight" in found:
    found["weight"] = weight(found["weight"], f"{where}.weight")
  return found


def _part(part: Any, where: str) -> str:
  if isinstance(part, Mapping) and isinstance(part.get("text"), str):
    return part["text"]
  kind = (
    part.get("type") if isinstance(part, Mapping) else json_lines.kind(part)
  )
  raise errors.ConfigError(f"{where} must have parts of text alone, got {kind}")


def weight(value: Any, where: str) -> float:
  """Returns a weight of a loss.

  Raises:
    ConfigError: it is no finite number of at least 0.
  """
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not is_number or not 0 <= value < math.inf:
    raise errors.ConfigError(
      f"{where} must be a number of at least 0, got {value!r}"
    )
  return float(value)
