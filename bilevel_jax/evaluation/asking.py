"""How each benchmark is asked, and what scores its answers."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence

from bilevel_jax import config, types, weights
from bilevel_jax.data import tokenizer
from bilevel_jax.evaluation import benchmark_table
from bilevel_jax.rewards import pool
from bilevel_jax.rewards.sandbox.settings import Sandbox
from bilevel_jax.weights import sampler

_DEADLINE_S = 10.0  # of an answer that is no program
# As LiveCodeBench has them, whose programs may use numpy.
_PROGRAMS = Sandbox(
  deadline_s=60.0, test_s=6.0, cpu_s=60, memory="4GB", packages=("numpy",)
)


def tokenizers(
  names: Sequence[str],
  opened: weights.Opened,
  prompt_format: config.Tokenizer,
  *,
  own_prompt: bool,
) -> dict[str, tokenizer.Tokenizer]:
  """Returns the tokenizer of each benchmark, which makes its prompts.

  Args:
    names: of the benchmarks that are to be asked.
    prompt_format: of those that have no prompt of their own.
    own_prompt: whether the others are asked by theirs.

  Raises:
    ConfigError: it cannot be read.
  """

  @functools.cache
  def read(prompt: str) -> tokenizer.Tokenizer:
    wanted = dataclasses.replace(prompt_format, prompt=prompt)
    return sampler.read_tokenizer(opened, wanted)

  table = benchmark_table.BENCHMARKS
  return {
    name: read((own_prompt and table[name].prompt) or prompt_format.prompt)
    for name in names
  }


def scorers(
  asked: Mapping[str, Sequence[types.Question]],
  verifier: str,
  isolation: str,
  started: contextlib.ExitStack,
) -> dict[str, pool.Scorer]:
  """Returns what scores each benchmark.

  Args:
    asked: benchmark -> its questions, as they are asked.
    verifier: of benchmarks that have none of their own.
    isolation: of programs, as in the settings `sandbox`.
    started: is given all of them, to be closed with it.

  Raises:
    ConfigError: programs cannot be run here, or have no tests.
  """

  @functools.cache
  def start(verifier: str) -> pool.Scorer:
    longest = _PROGRAMS.deadline_s + _DEADLINE_S
    scorer = pool.Scorer(
      {verifier: 1.0},
      deadline_s=longest if verifier == "code" else _DEADLINE_S,
      sandbox=dataclasses.replace(_PROGRAMS, isolation=isolation),
    )
    return started.enter_context(scorer)

  found = {}
  for name, questions in asked.items():
    found[name] = start(benchmark_table.BENCHMARKS[name].verifier or verifier)
    found[name].check(questions)
  return found
