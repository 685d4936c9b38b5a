"""What a teacher is asked that is shown a question's own demonstration."""

import re

import numpy as np

from bilevel_jax.data import tokenizer as tokenizer_lib
from bilevel_jax.training import sources
from bilevel_jax.types import Demonstration, Question


def prompt_tokens(
  tokenizer: tokenizer_lib.Tokenizer,
  prompt: str,
  question: Question,
  own: Demonstration,
) -> np.ndarray:
  """Returns int32 ids [n] of what a teacher is asked.

  Args:
    prompt: where {question} and {solution} are to be put.
    own: whose solution the teacher is shown.

  Raises:
    ConfigError: it cannot be encoded.
  """
  parts = {
    "{question}": question.question,
    "{solution}": tokenizer.decode(own.solution),
  }
  places = "|".join(map(re.escape, parts))
  # In one go: a question may have braces of its own.
  text = re.sub(places, lambda part: parts[part[0]], prompt)
  return tokenizer.prompt_tokens(question._replace(question=text))


def check_prompt(
  tokenizer: tokenizer_lib.Tokenizer, prompt: str, streams: sources.Streams
) -> None:
  """Returns nothing if a teacher can be asked about the first that it may be.

  Raises:
    ConfigError: the prompt cannot be encoded.
  """
  assert streams.demonstrations is not None
  questions = streams.prompts.questions
  for question, own in zip(
    questions, streams.demonstrations.of(questions), strict=True
  ):
    if own is not None:
      prompt_tokens(tokenizer, prompt, question, own)
      return
