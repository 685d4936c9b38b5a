"""Writes how often a policy answers each question right; trains nothing.

  python -m bilevel_jax.difficulty --config FILE.py [--config.FIELD=VALUE ...]
    [--samples 8] [--out pass_rates.jsonl]

The model, questions, prompts, sampling and reward are those of a config file.
The file that is written has a line for each question: `id`, `question`,
`pass_rate` (the share of the samples that are right), `samples`, and
`unscored`, how many of these could not be scored and count as wrong. A run
takes it as data.pass_rates, to ask a part of the questions (data.keep=0.1..0.9)
or to begin with easy ones (data.curriculum=easy_first). The same command goes
on where it was interrupted.

The exit codes are those of `bilevel_jax.main`.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import rich.console

from bilevel_jax import (
  command_line,
  compile_cache,
  config,
  errors,
  main,
  types,
)
from bilevel_jax.data import batches, corpora
from bilevel_jax.evaluation import result_files
from bilevel_jax.random_streams import Stream
from bilevel_jax.rewards import pool
from bilevel_jax.rollout import answers, cache
from bilevel_jax.rollout.row_sharding import RowSharding
from bilevel_jax.runs import records as records_lib
from bilevel_jax.training import meshes, sources
from bilevel_jax.training import run as run_lib
from bilevel_jax.weights import sampler


def measure(
  settings: config.Config, samples: int, out: str | pathlib.Path
) -> list[dict[str, Any]]:
  """Writes the pass rate of each question of a run's settings; returns them.

  Args:
    samples: answers that are sampled to each question.
    out: the file; what is there of the same settings is not done again.

  Raises:
    ConfigError: something in the settings cannot be used, or the file has
      pass rates of others.
  """
  path = pathlib.Path(out)
  console = rich.console.Console(stderr=True, highlight=False)
  opened = sources.open_model(settings)
  tokenizer = sources.build_model(settings, opened).tokenizer
  prompts = batches.Prompts(
    corpora.load(settings.data.questions),
    tokenizer,
    max_tokens=settings.data.max_prompt_tokens,
    overlong=settings.data.overlong,
    seed=settings.seed,
  )
  questions, tokens = prompts.every()
  by = _hash_of(settings, samples, opened.fingerprint())
  found = result_files.resume_records(path, questions)
  if any(row.get("settings") != by for row in found):
    raise errors.ConfigError(
      f"--out {path} has pass rates of other weights or settings; name another "
      "file"
    )
  with run_lib.build_scorer(settings) as scorer:
    scorer.check(questions)
    model = sampler.build(
      opened,
      tokenizer,
      dtype=settings.model.dtype,
      place=functools.partial(meshes.for_sampling, devices=jax.local_devices()),
    )
    rows = settings.rollout.max_rows * RowSharding(model.policy.rows).shards
    at_once = max(1, rows // samples)
    with path.open("ab") as file:
      while (start := len(found)) < len(questions):
        chosen = slice(start, start + at_once)
        new = _rates(
          settings, model, scorer, questions[chosen], tokens[chosen],
          start, samples,
        )  # fmt: skip
        new = [row | {"settings": by} for row in new]
        file.write(b"".join(records_lib.to_json(r) + b"\n" for r in new))
        file.flush()
        found += new
        console.print(f"{len(found)} of {len(questions)} questions")
  return found


def _rates(
  settings: config.Config,
  model: sampler.Sampler,
  scorer: pool.Scorer,
  questions: list[types.Question],
  prompts: list[np.ndarray],
  start: int,
  samples: int,
) -> list[dict[str, Any]]:
  """Returns the rows of the next few questions."""
  rollout = settings.rollout
  answered = answers.answer(
    model.policy,
    model.weights,
    questions,
    types.Requests(
      prompts=prompts,
      prompt_ids=np.arange(start, start + len(prompts)),
      samples_per_prompt=samples,
      max_new_tokens=rollout.max_new_tokens,
      eos_ids=model.tokenizer.eos_ids,
      stop=rollout.stop,
      sampling=types.Sampling(
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        min_p=rollout.min_p,
      ),
      key=Stream.ROLLOUT.key(settings.seed),
    ),
    model.tokenizer,
    scorer,
    max_rows=rollout.max_rows,
    cache_bytes=rollout.kv_cache_bytes
    or cache.default_bytes(jax.local_devices()),
    sharding=model.policy.rows,
  )
  shape = (len(questions), samples)
  scored = answered.scores.scored.reshape(shape)
  right = answered.scores.correct.reshape(shape) & scored
  return [
    {
      "id": question.id,
      "question": question.question,
      "pass_rate": float(right[n].mean()),
      "samples": samples,
      "unscored": int((~scored[n]).sum()),
    }
    for n, question in enumerate(questions)
  ]


def _hash_of(settings: config.Config, samples: int, weights: str) -> str:
  """Returns a hash of all that a pass rate depends on."""
  on = [
    dataclasses.asdict(part)
    for part in (settings.tokenizer, settings.reward, settings.rollout)
  ]
  text = json.dumps([weights, settings.seed, samples, *on])
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _measure(options: argparse.Namespace, arguments: Sequence[str]) -> None:
  command_line.check_bounds(options, {"samples": {"at_least": 1}})
  settings = main.read_settings(arguments)
  compile_cache.enable()
  rates = [
    row["pass_rate"] for row in measure(settings, options.samples, options.out)
  ]
  solved = sum(rate == 1 for rate in rates)
  never = sum(rate == 0 for rate in rates)
  print(
    f"{options.out}: {len(rates)} questions, mean pass rate "
    f"{sum(rates) / len(rates):.3f}; {solved} always solved, {never} never"
  )


def difficulty() -> None:
  """Measures pass rates as the command line says, and exits."""
  parser = command_line.Parser("python -m bilevel_jax.difficulty", __doc__)
  parser.add("--samples", "answers to each question", int, 8, metavar="K")
  parser.add("--out", "file of pass rates", default="pass_rates.jsonl")
  options, rest = parser.parse_known_args(sys.argv[1:])
  main.run(functools.partial(_measure, options), [sys.argv[0], *rest])


if __name__ == "__main__":
  difficulty()
