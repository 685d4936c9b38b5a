"""A reward that leaves a mark each time, in a file of the run's process."""

import os
import pathlib

DIRECTORY = "BILEVEL_JAX_TEST_COUNTED"


def digits(completion, question) -> float:
  """A reward that random text earns sometimes: its share of digits."""
  del question
  if DIRECTORY in os.environ:
    marks = pathlib.Path(os.environ[DIRECTORY]) / f"calls-{os.getppid()}"
    with marks.open("a") as file:
      file.write(".")
  return sum(c.isdigit() for c in completion) / max(len(completion), 1)
