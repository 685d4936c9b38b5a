"""Equality by computer algebra: math-verify, its grammar read in two stages."""

from __future__ import annotations

import functools
import logging
import re
from typing import Any
from unittest import mock

from bilevel_jax.rewards import extraction

LONGEST = 2000  # characters of an answer; what is longer equals none
_CONTEXT = 500  # characters before the last box or `answer is`, or of the end
_DOLLAR = re.compile(r"(?<!\\)\$")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3}")


def equivalent(answer: str, completion: str) -> bool:
  """Returns whether math-verify finds the answer in a completion.

  It reads the end of the completion: its boxes, else what is said to be the
  answer, else the last formula or number. Its own time limits are off, for
  they need SIGALRM, hence the main thread: it may hang.

  Args:
    answer: LaTeX, or text with LaTeX between dollar signs.
  """
  box = extraction.last_box(completion)
  # Some context, for an answer in several boxes or with a unit behind it.
  said = [match.span() for match in extraction.ANSWER_IS.finditer(completion)]
  start, end = box or (said or [(len(completion),) * 2])[-1]
  if end - start > LONGEST:
    return False
  context = completion[max(0, start - _CONTEXT) : end + 20]
  gold, found = _parse(_delimited(answer)), _parse(context)
  return _math_verify().verify(gold, found, timeout_seconds=None)


def start() -> None:
  """Builds the parser, and what sympy builds at its first comparison."""
  equivalent("2y", r"\boxed{\frac{x}{2}}")


def _delimited(answer: str) -> str:
  """An answer with dollar signs around its formula."""
  if any(mark in answer for mark in ("\\[", "\\(", "\\boxed")):
    return answer
  before, *after = _DOLLAR.split(answer)
  if after and (not before.strip() or _WORD.search(before)):
    return answer
  # No dollar sign, or some that end and begin within: `8$, $4`.
  return f"${_DOLLAR.sub('', answer).rstrip('. ')}$"


@functools.lru_cache(maxsize=4096)
def _parse(latex: str) -> list[Any]:
  from latex2sympy2_extended import latex2sympy2

  with mock.patch.object(latex2sympy2, "PSParser", _in_two_stages()):
    return _math_verify().parse(latex, parsing_timeout=None)


@functools.cache
def _math_verify() -> Any:
  import math_verify

  # A warning that the limits are off, and one for each text it cannot read.
  for name in ("math_verify", "latex2sympy2_extended"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  return math_verify


@functools.cache
def _in_two_stages() -> type:
  """The parser of math-verify's grammar, which reads LaTeX in two stages.

  ALL(*) parsers have a mode, SLL, that ignores what was read before where it
  predicts what comes next. What it accepts it reads as the full mode does, and
  all that it finds out can be kept for the next text (Parr, Harwell, Fisher
  2014, section 3.2). What it refuses is read again in full.
  """
  from antlr4.atn.PredictionMode import PredictionMode
  from latex2sympy2_extended import latex2sympy2

  class InTwoStages(latex2sympy2.PSParser):
    def math(self) -> Any:
      tokens: Any = self.getTokenStream()
      tokens.fill()  # what it cannot cut up is refused once
      self._interp.predictionMode = PredictionMode.SLL
      try:
        return super().math()
      except Exception:  # whatever the listener of syntax errors raises
        self.reset()
        self._interp.predictionMode = PredictionMode.LL
        return super().math()

  return InTwoStages
