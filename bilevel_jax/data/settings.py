"""Settings of examples: where they are read, and how they become tokens."""

import dataclasses
import string
from typing import Any

from bilevel_jax import errors
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
  chat_template_kwargs: dict[str, Any] = setting(
    {},
    "what else the chat template sees, such as {'enable_thinking': False}; a "
    "row's own column of this name comes before it",
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
    None,
    "data file (JSONL, JSON, CSV, TSV, all also with gzip, or parquet); beside "
    "`hub`, a copy with our names",
  )
  hub: str | None = setting(None, "Hugging Face dataset id or directory")
  name: str | None = setting(None, "configuration name of the hub dataset")
  revision: str | None = setting(None, "branch, tag or commit of the dataset")
  split: str = setting(
    "train", "split of the hub dataset, or of the task: train or test"
  )
  task: str | None = setting(
    None, "procedural task: arithmetic, countdown, programs, reasoning_gym/NAME"
  )
  task_options: dict[str, Any] = setting(
    {}, "arguments of the procedural task, such as {'steps': 2}"
  )
  sources: tuple[str, ...] = setting(
    (),
    "several sources in place of one, each a file, directory, hub id or task, "
    "such as ('mine.jsonl=0.7', 'openai/gsm8k:main=0.3') where each has a "
    "share of what is taken; without shares all rows count alike",
  )
  fields: dict[str, str] = setting(
    {},
    "our column -> theirs, where the names do not say it (docs/how_to/"
    "own_data.md); a dot leads into a mapping, as in reward_model.ground_truth",
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


def check_prompt(prompt: str, name: str = "tokenizer.prompt") -> None:
  """Returns nothing if a question can be put into the text.

  Args:
    name: what to call it in a message.

  Raises:
    ConfigError: it is no format string, or has no field.
  """
  try:
    fields = {field for _, field, _, _ in string.Formatter().parse(prompt)}
  except ValueError as error:
    raise errors.ConfigError(
      f"{name} must be a format string (write {{{{ and }}}} for "
      f"braces), got {prompt!r}: {error}"
    ) from error
  if not fields - {None}:
    raise errors.ConfigError(
      f"{name} must have a field such as {{question}}, got {prompt!r}"
    )
