"""From a file in `configs/` to frozen settings, or every broken rule."""

import collections
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import ml_collections
from ml_collections import config_dict

from bilevel_jax import errors, fields, methods
from bilevel_jax.config import model, other_names, schema
from bilevel_jax.data import corpora, pass_rates
from bilevel_jax.fields import byte_count
from bilevel_jax.rewards.sandbox import settings

_LEAST_MEMORY = 256 * 10**6  # that a scoring process starts with


def default_config() -> ml_collections.ConfigDict:
  """Returns the defaults as a locked ConfigDict, for files in `configs/`."""
  return _render(schema.Config())


def parse(
  config: Mapping[str, Any] | ml_collections.ConfigDict,
) -> schema.Config:
  """Returns the frozen settings.

  Args:
    config: nested mapping with any of the schema's fields.

  Raises:
    ConfigError: one line for every unknown field, wrong type and broken rule.
  """
  broken: list[str] = []
  parsed = _freeze(schema.Config, config, "", broken)
  if not broken:
    parsed = _with_own_options(parsed, broken)
  if not broken:
    broken.extend(_broken_rules(parsed))
  if broken:
    raise errors.ConfigError("\n".join(broken))
  return parsed


def _with_own_options(
  config: schema.Config, broken: list[str]
) -> schema.Config:
  """Returns the settings with those of a method of the user's own typed."""
  method = config.method
  try:
    options = methods.find(method.name).options
  except errors.ConfigError as error:
    broken.append(str(error))
    return config
  if method.name in methods.METHODS or options is None:
    if given := ", ".join(method.options):
      broken.append(
        "method.options is for a method of your own whose module has a "
        f"dataclass Options, got {given} with method.name {method.name}"
      )
    return config
  own = _freeze(options, method.options, "method.options.", broken)
  return dataclasses.replace(
    config, method=dataclasses.replace(method, options=own)
  )


def check_name(path: Sequence[str]) -> None:
  """Returns nothing if a setting has that name.

  Args:
    path: names of groups, and of the field.

  Raises:
    ConfigError: naming the first part that is not in the schema.
  """
  cls: Any = schema.Config
  for depth, name in enumerate(path):
    hints = typing.get_type_hints(cls)
    if name not in hints:
      shown = ".".join(path[: depth + 1]) or "''"
      raise errors.ConfigError(
        f"{shown} is not a field{suggestion(name, hints)}"
      )
    cls = hints[name]
    if not dataclasses.is_dataclass(cls):
      # Below it are keys of the user's own, or nothing.
      if path[depth + 1 :] and typing.get_origin(cls) is not dict:
        group, inner = path[: depth + 1], path[depth + 1 :]
        raise errors.ConfigError(
          f"{'.'.join(group)} must be {_kind(cls)}, and has no field "
          f"{'.'.join(inner)}"
        )
      return


def kind_of(path: Sequence[str]) -> str:
  """Returns what the value of a field is called: "an integer"."""
  hint: Any = schema.Config
  for name in path:
    if not dataclasses.is_dataclass(hint):
      break
    hint = typing.get_type_hints(hint)[name]
  return _kind(hint)


def to_dict(config: schema.Config) -> dict[str, Any]:
  """Returns the settings as nested dicts that JSON can hold."""
  return dataclasses.asdict(config)


def flat(
  tree: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
  """Yields (dotted name, value) of nested settings."""
  for name, value in tree.items():
    if isinstance(value, Mapping) and value:
      yield from flat(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value


def defaults() -> dict[str, Any]:
  """Returns every default by its dotted name, as it comes back from JSON."""
  return dict(flat(json.loads(json.dumps(to_dict(schema.Config())))))


def _broken_rules(config: schema.Config) -> Iterator[str]:
  """Yields a sentence for each rule between several fields that is broken."""
  rollout, data, rl = config.rollout, config.data, config.rl
  if rl.dual_clip is not None and rl.clip != "objective":
    yield (
      "rl.dual_clip is a bound of rl.clip=objective, got "
      f"{rl.dual_clip} with rl.clip {rl.clip}"
    )
  if config.model.weights is None and config.model.preset is None:
    yield "model.weights or model.preset must be set, got neither"
  yield from model.broken_rules(config)
  if rollout.max_new_tokens < 1:
    yield (
      f"rollout.max_new_tokens must be at least 1, got {rollout.max_new_tokens}"
    )
  for name in ("questions", "demonstrations", "evaluation"):
    source = getattr(data, name)
    kinds = ("path", "hub", "task", "sources")
    given = [k for k in kinds if getattr(source, k)]
    if (source.task or source.sources) and len(given) > 1:
      yield (
        f"data.{name} takes one of {', '.join(kinds)}, got {', '.join(given)}"
      )
    try:
      corpora.shares_of(source.sources)
    except errors.ConfigError as error:
      yield str(error)
    if not given and name == "questions":
      yield f"data.questions needs one of {', '.join(kinds)}, got none"
  if config.data.questions.sources and (
    config.data.paired_questions_share is not None
  ):
    yield (
      "data.paired_questions_share and the shares of data.questions.sources "
      "exclude each other, got both"
    )
  for count, what in (
    (rows := data.prompts_per_step * rollout.samples_per_prompt, "samples"),
    (config.total_updates, "updates"),
  ):
    if count >= 2**31:
      yield f"{what} must be below 2^31, got {count}"
  if rollout.total_tokens is not None and rollout.total_tokens < rows:
    yield (
      f"rollout.total_tokens must be at least 1 for each of the {rows} samples "
      f"of a step, got {rollout.total_tokens}"
    )
  if rows % rl.updates_per_rollout:
    yield (
      f"rl.updates_per_rollout must divide the {rows} samples of a step "
      f"(data.prompts_per_step {data.prompts_per_step} x "
      f"rollout.samples_per_prompt {rollout.samples_per_prompt}), got "
      f"{rl.updates_per_rollout}"
    )
  updates = rl.updates_per_rollout * rl.passes_per_rollout
  if data.demonstrations_per_step % updates:
    yield (
      f"data.demonstrations_per_step must be a multiple of the {updates} "
      f"updates of a step, got {data.demonstrations_per_step}"
    )
  yield from methods.find(config.method.name).rules(config.method.own, config)
  traced = list(config.logging.profile_steps)
  if traced and (len(traced) > 2 or not 1 <= traced[0] <= traced[-1]):
    yield (
      "logging.profile_steps must be the first and the last step to trace, "
      f"counted from 1, got {', '.join(map(str, traced))}"
    )
  if data.pass_rates is None and (data.keep or data.curriculum != "none"):
    yield (
      "data.keep and data.curriculum need data.pass_rates, got None with "
      f"{data.keep} and {data.curriculum}"
    )
  if data.keep is not None:
    try:
      pass_rates.bounds(data.keep)
    except errors.ConfigError as error:
      yield str(error)
  reward = config.reward
  if (reward.overlong_tokens or 0) > rollout.max_new_tokens:
    yield (
      "reward.overlong_tokens must be at most rollout.max_new_tokens "
      f"{rollout.max_new_tokens}, got {reward.overlong_tokens}"
    )
  if reward.memory is not None:
    try:
      if byte_count(reward.memory) < _LEAST_MEMORY:
        yield f"reward.memory must be at least 256MB, got {reward.memory}"
    except ValueError as error:
      yield f"reward.memory {error}"
  for name, count in collections.Counter(reward.verifiers).items():
    if count > 1:
      yield (
        f"reward.verifiers must name each verifier once, got {name} {count} "
        "times"
      )
  if reward.verifier_names and reward.verifiers_by is None:
    yield (
      "reward.verifier_names needs reward.verifiers_by, the field whose values "
      f"it has, got None with {reward.verifier_names}"
    )
  if "code" in reward.verifiers:
    yield from _broken_rules_of_sandbox(config.sandbox, reward.deadline_s)
  if reward.weights and len(reward.weights) != len(reward.verifiers):
    yield (
      f"reward.weights must have one for each of the {len(reward.verifiers)} "
      f"reward.verifiers, got {len(reward.weights)}"
    )


def _broken_rules_of_sandbox(
  sandbox: settings.Sandbox, scoring_s: float
) -> Iterator[str]:
  if sandbox.deadline_s >= scoring_s:
    # Else a program that takes its time would count as one without a score.
    yield (
      f"sandbox.deadline_s must be below reward.deadline_s {scoring_s:g}, got "
      f"{sandbox.deadline_s:g}"
    )
  if sandbox.test_s > sandbox.deadline_s:
    yield (
      "sandbox.test_s must be at most sandbox.deadline_s "
      f"{sandbox.deadline_s:g}, got {sandbox.test_s:g}"
    )
  for name, least in (("memory", 64 * 10**6), ("output", 10**5)):
    text = getattr(sandbox, name)
    try:
      if byte_count(text) < least:
        yield f"sandbox.{name} must be at least {least / 1e6:g}MB, got {text}"
    except ValueError as error:
      yield f"sandbox.{name} {error}"


def _render(value: Any) -> ml_collections.ConfigDict:
  out = ml_collections.ConfigDict()
  open_fields: list[ml_collections.ConfigDict] = []
  hints = typing.get_type_hints(type(value))
  for field in dataclasses.fields(value):
    item = getattr(value, field.name)
    if dataclasses.is_dataclass(item):
      out[field.name] = _render(item)
    elif item is None:
      hint = _without_none(hints[field.name])[0]
      kind = typing.get_origin(hint) or hint
      kind = str if kind is Literal else kind
      out[field.name] = config_dict.placeholder(kind)
    elif isinstance(item, dict):
      open_fields.append(ml_collections.ConfigDict(item))
      out[field.name] = open_fields[-1]
    else:
      out[field.name] = item
  out.lock()
  for group in open_fields:
    # New keys are part of such a field's meaning.
    group.unlock()
  return out


def _without_none(hint: Any) -> tuple[Any, ...]:
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return tuple(h for h in typing.get_args(hint) if h is not type(None))
  return (hint,)


def _freeze(cls: type, given: Any, prefix: str, broken: list[str]) -> Any:
  if not isinstance(given, (Mapping, ml_collections.ConfigDict)):
    broken.append(f"{prefix[:-1]} must be a group of fields, got {given!r}")
    return cls()
  hints = typing.get_type_hints(cls)
  known = {f.name: f for f in dataclasses.fields(cls)}
  for name in given:
    if name not in known:
      broken.append(f"{prefix}{name} is not a field{suggestion(name, known)}")
  values = {}
  for name, field in known.items():
    if name not in given:
      continue
    item, path = given[name], prefix + name
    if dataclasses.is_dataclass(hints[name]):
      values[name] = _freeze(hints[name], item, path + ".", broken)
    else:
      values[name] = _convert(item, hints[name], path, broken)
      broken.extend(_broken_bounds(values[name], field.metadata, path))
  return cls(**values)


def suggestion(name: str, known: Iterable[str] = ()) -> str:
  """Returns what ends the message about a name that no field has.

  Args:
    known: that it could have been instead; what TRL or verl call so, and those
      of other groups that have the very name, come first.
  """
  if name in other_names.THEIRS:
    return f", did you mean {other_names.THEIRS[name]}?"
  moved = [path for path in defaults() if path.endswith(f".{name}")]
  close = moved or difflib.get_close_matches(name, known, n=1)
  return f", did you mean {' or '.join(close)}?" if close else ""


def _convert(item: Any, hint: Any, path: str, broken: list[str]) -> Any:
  if hint is Any:
    return item
  optional = type(None) in typing.get_args(hint)
  if item is None and optional:
    return None
  hint = _without_none(hint)[0]
  origin = typing.get_origin(hint) or hint
  if origin is Literal:
    choices = typing.get_args(hint)
    if item not in choices:
      broken.append(f"{path} must be one of {', '.join(choices)}, got {item!r}")
    return item
  if origin is tuple and isinstance(item, (tuple, list)):
    inner = typing.get_args(hint)[0]
    return tuple(
      _convert(value, inner, f"{path}[{number}]", broken)
      for number, value in enumerate(item)
    )
  if origin is dict and isinstance(item, (Mapping, ml_collections.ConfigDict)):
    if isinstance(item, ml_collections.ConfigDict):
      item = item.to_dict()
    inner = typing.get_args(hint)[1]
    return {
      name: _convert(value, inner, f"{path}.{name}", broken)
      for name, value in item.items()
    }
  if origin is float and isinstance(item, int) and not isinstance(item, bool):
    return float(item) if abs(item) < 2**63 else math.inf
  if origin in (int, float, str, bool) and type(item) is origin:
    return item
  or_none = " or None" if optional else ""
  broken.append(f"{path} must be {_kind(hint)}{or_none}, got {item!r}")
  return item


def _kind(hint: Any) -> str:
  hint = _without_none(hint)[0]
  return {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
    tuple: "a list",
    dict: "a group of fields",
    Literal: "a string",
  }.get(typing.get_origin(hint) or hint, "a group of fields")


def _broken_bounds(
  value: Any, metadata: Mapping[str, Any], path: str
) -> Iterator[str]:
  """Yields a sentence for each bound that a value or its parts break."""
  if isinstance(value, tuple):
    for number, item in enumerate(value):
      yield from _broken_bounds(item, metadata, f"{path}[{number}]")
  elif isinstance(value, (int, float)) and not isinstance(value, bool):
    if expected := fields.must_be(value, metadata.get("rules", {})):
      yield f"{path} must be {expected}, got {value}"
  elif value == "" and not metadata.get("may_be_empty"):
    yield f"{path} must not be empty, got ''"
