"""A reward that leaves a mark each time, in a file that the caller names."""

import os
import pathlib

FILE = "BILEVEL_JAX_TEST_COUNTED"


def digits(completion, question) -> float:
  """A reward that random text earns sometimes: its share of digits."""
  del question
  if FILE in os.environ:
    with pathlib.Path(os.environ[FILE]).open("a") as file:
      file.write(".")
  return sum(c.isdigit() for c in completion) / max(len(completion), 1)
