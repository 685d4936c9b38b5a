"""Settings of examples: where they are read, and how they become tokens."""

import dataclasses
from typing import Any

from bilevel_jax.fields import setting


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  path: str | None = setting(None, "directory or hub id; default: the weights'")
  chat_template: str | None = setting(
    None, "Jinja chat template that replaces the tokenizer's own"
  )
  system_prompt: str | None = setting(
    None, "system message, if any", may_be_empty=True
  )
  prompt: str = setting(
    "{question}\nPlease reason step by step, and put your final answer within "
    "\\boxed{{}}.",
    "text of the user's turn, formatted with the question's fields",
  )
  use_chat_template: bool = setting(
    True, "wrap the prompt in the chat template where there is one"
  )
  date: str | None = setting(
    None,
    "date and time, as 2026-03-01T12:00:00, that a chat template which asks "
    "for the present is told; default: the run's start, kept when it resumes",
  )


@dataclasses.dataclass(frozen=True)
class Source:
  """Where examples come from: a task, a file, or the hub."""

  path: str | None = setting(
    None, "JSONL or JSONL.gz file; beside `hub`, a copy with our names"
  )
  hub: str | None = setting(None, "Hugging Face dataset id or directory")
  name: str | None = setting(None, "configuration name of the hub dataset")
  revision: str | None = setting(None, "branch, tag or commit of the dataset")
  split: str = setting(
    "train", "split of the hub dataset, or of the task: train or test"
  )
  task: str | None = setting(
    None, "procedural task: arithmetic, countdown, or reasoning_gym/NAME"
  )
  task_options: dict[str, Any] = setting(
    {}, "arguments of the procedural task, such as {'steps': 2}"
  )
  fields: dict[str, str] = setting(
    {}, "our field -> their field, for id, question, answer, solution"
  )
  first: int = setting(0, "examples to skip at the start", at_least=0)
  count: int | None = setting(None, "examples to keep; default all", at_least=1)
  seed: int = setting(0, "seed of a procedural task", at_least=0, below=2**32)


@dataclasses.dataclass(frozen=True)
class Demonstrations(Source):
  """Where demonstrations come from, and how much each counts."""

  weights: str | None = setting(
    None,
    "JSONL file with an id and a weight for each demonstration, such as the "
    "demonstrations.jsonl of another run: its SFT loss is multiplied by that",
  )
