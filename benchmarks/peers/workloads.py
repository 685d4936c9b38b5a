"""What benchmarks/rollout.py asks of every contestant, and its least time."""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bilevel_jax import errors, types
from bilevel_jax.data import tokenizer as tokenizer_lib
from bilevel_jax.models import presets

# The model of the comparison with google-tunix: 6.0M parameters.
BENCH = presets.Architecture(
  family="llama",
  vocab_size=8192,
  width=256,
  layers=4,
  heads=4,
  kv_heads=2,
  head_dim=64,
  mlp_width=1024,
  max_positions=2048,
)
QUESTIONS = (
  "What is 17 + 25?",
  "A shirt costs $20 and is 15% off. What is its price now?",
  "Anna has 3 bags of 12 marbles and gives away 7. How many are left?",
  "A train goes 60 miles an hour for 2.5 hours. How far does it go?",
  "What is the sum of the first ten positive integers?",
  "Tom reads 24 pages a day. How many days does he need for 312 pages?",
  "Solve for x: 3x + 5 = 26.",
  "The sides of a rectangle are 8 and 5. What are its area and perimeter?",
  "If half of the 46 children leave, how many of them stay?",
  "Write 0.375 as a fraction in lowest terms.",
)
PROMPT_TOKENS = 16
EOS = 0


class Workload(NamedTuple):
  """What every contestant is asked to do."""

  name: str
  prompts: list[list[int]]
  lengths: list[int] | None  # of the completions; None: as they come
  budget: int
  eos_ids: tuple[int, ...]
  batch: int  # rows of a sampler that knows only static batches
  temperature: float

  def request(self, seed: int) -> dict[str, Any]:
    """Returns the line that asks for it."""
    return {**self._asdict(), "seed": seed}


def workloads(options: argparse.Namespace, vocab_size: int) -> list[Workload]:
  """Returns what the command line asks for.

  Args:
    options: of the command line.
    vocab_size: of the model.

  Raises:
    ConfigError: a vocabulary that is too small.
  """
  if options.weights is not None:
    tokenizer = tokenizer_lib.from_source(options.weights, prompt="{question}")
    questions = [types.Question("", text, "", None, {}) for text in QUESTIONS]
    return [
      Workload(
        name=f"{len(QUESTIONS)} questions, greedy",
        prompts=[tokenizer.prompt_tokens(q).tolist() for q in questions],
        lengths=None,
        budget=options.new_tokens,
        eos_ids=tokenizer.eos_ids,
        batch=len(QUESTIONS),
        temperature=0.0,
      )
    ]
  asked = {}
  if "uniform" in options.workloads:
    for rows in options.rows:
      asked[f"uniform, {rows} x {options.new_tokens}"] = (
        [options.new_tokens] * rows,
        rows,
      )
  if "long-tail" in options.workloads:
    name = f"long tail, {options.requests} x 8..512"
    asked[name] = (long_tail(options.requests), options.batch)
  return [
    _forced(name, lengths, batch, vocab_size)
    for name, (lengths, batch) in asked.items()
  ]


def _forced(name, lengths, batch, vocab_size):
  budget = max(lengths)
  if vocab_size <= budget + 1:
    raise errors.ConfigError(
      f"the vocabulary must have a token for each length up to {budget}, got "
      f"{vocab_size} tokens"
    )
  rng = np.random.default_rng(1)
  shape = (len(lengths), PROMPT_TOKENS)
  prompts = rng.integers(1, vocab_size - 1, shape)  # the last is for padding
  prompts[:, 1] = lengths
  return Workload(
    name=name,
    prompts=prompts.tolist(),
    lengths=list(lengths),
    budget=budget,
    eos_ids=(EOS,),
    batch=batch,
    temperature=1.0,
  )


def long_tail(requests: int) -> list[int]:
  """Returns the lengths of so many requests, from a log-normal, seed 0."""
  sampled = np.random.default_rng(0).lognormal(np.log(96), 1.0, requests)
  return np.clip(sampled, 8, 512).astype(int).tolist()


def roofline_seconds(
  architecture: presets.Architecture,
  lengths: Sequence[int],
  prompt_tokens: int,
  *,
  bytes_per_number: int,
  bandwidth: float,
  flops: float,
) -> float:
  """Returns the least time in which all requests can be decoded as one batch.

  Step t, with n rows left of c columns in all, takes
  max(W / bandwidth, 2 n P / flops) + c k / bandwidth, where P are the weights
  in products, W their bytes and k the bytes of a column's keys and values.

  Args:
    architecture: sizes and switches.
    lengths: tokens of each completion.
    prompt_tokens: of each prompt.
    bytes_per_number: 2 for bfloat16.
    bandwidth: bytes a second.
    flops: operations a second.
  """
  a = architecture
  products = a.layers * sum(i * o for i, o in a.projections.values())
  products += a.width * a.vocab_size
  column = 2 * a.layers * a.kv_heads * a.head_dim * bytes_per_number
  step = np.arange(max(lengths))
  rows = (np.asarray(lengths)[:, None] > step).sum(0)
  weights = np.maximum(
    products * bytes_per_number / bandwidth, 2 * rows * products / flops
  )
  columns = rows * (prompt_tokens + step)
  return float((weights + columns * column / bandwidth).sum())
