"""Reward functions as people have them, told apart by their arguments.

f(completion, question)                     ours
f(completions, prompts=..., **columns)      TRL's: lists of one, a list back,
                                            None: not for this row
compute_score(data_source, solution_str, ground_truth, extra_info)
                                            verl's: a number, or a dict with
                                            `score`
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from bilevel_jax import types


def adapted(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a reward function of any of these forms as one of our own."""
  try:
    parameters = inspect.signature(function).parameters
  except (TypeError, ValueError):  # of C, for one
    return function
  if "completions" in parameters:
    return functools.partial(_as_trl, function, parameters)
  if {"solution_str", "ground_truth"} <= parameters.keys():
    return functools.partial(_as_verl, function, parameters)
  return function


def columns(question: types.Question) -> dict[str, Any]:
  """Returns a row's columns by the names that TRL's functions ask for."""
  answer = question.answer or None
  found = {
    "id": question.id,
    "question": question.question,
    "answer": answer,
    # TRL's own `solution` is what a reward reads.
    "solution": question.solution or answer,
    "ground_truth": answer,
  }
  return {**found, **question.meta}


def _as_trl(
  function: Callable[..., Any],
  parameters: Mapping[str, inspect.Parameter],
  completion: str,
  question: types.Question,
) -> Any:
  prompt: Any = question.question
  said: Any = completion
  dialogue = question.dialogue
  if dialogue is not None and dialogue.turns:
    prompt = [dict(turn) for turn in dialogue.turns[: dialogue.asked]]
    said = [{"role": "assistant", "content": completion}]
  given = {name: [value] for name, value in columns(question).items()} | {
    "prompts": [prompt],
    "completions": [said],
  }
  value = function(**_taken(given, parameters))
  if isinstance(value, (list, tuple)) and len(value) == 1:
    return NOT_FOR_THIS_ROW if value[0] is None else value[0]
  return value


def _as_verl(
  function: Callable[..., Any],
  parameters: Mapping[str, inspect.Parameter],
  completion: str,
  question: types.Question,
) -> Any:
  meta = question.meta
  truth = (meta.get("reward_model") or {}).get("ground_truth", question.answer)
  given = {
    "data_source": meta.get("data_source", ""),
    "solution_str": completion,
    "ground_truth": truth,
    "extra_info": meta.get("extra_info"),
  }
  value = function(**_taken(given, parameters))
  return value["score"] if isinstance(value, Mapping) else value


def _taken(
  given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
  """What of the given arguments a function takes."""
  if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
    return dict(given)
  return {name: value for name, value in given.items() if name in parameters}


NOT_FOR_THIS_ROW = object()
"""What a function of TRL's form says by None."""
