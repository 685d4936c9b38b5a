"""Scores weights on benchmarks of mathematics and programs, with intervals.

WEIGHTS is a run directory or its export, a Hugging Face directory, a hub id or
a .gguf file. Benchmarks come from the hub, or with --data from JSONL files.

  python -m bilevel_jax.evaluate --weights runs/mine --out results/mine \\
    --benchmarks math500,aime24 --samples 8 --temperature 0.6

--out gets scores.json (scores, and the prompt and limits that they depend on)
and records/BENCHMARK.jsonl (a line a question). The same command again goes on
where it stopped; with --against, it says how much better it is than another.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import pathlib
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress
import rich.text

from bilevel_jax import (
  command_line,
  compile_cache,
  config,
  errors,
  own_code,
  types,
  weights,
)
from bilevel_jax.data import corpora
from bilevel_jax.data import settings as data_settings
from bilevel_jax.data import tokenizer as tokenizer_lib
from bilevel_jax.evaluation import (
  against,
  asking,
  benchmark_table,
  contamination,
  result_files,
  summary,
)
from bilevel_jax.reporting import scores, text
from bilevel_jax.rewards import pool, verifiers
from bilevel_jax.rollout import answers, cache, sampling
from bilevel_jax.rollout.row_sharding import RowSharding
from bilevel_jax.training import meshes
from bilevel_jax.weights import sampler

_BOUNDS = command_line.SAMPLING | {
  name: {"at_least": 1}
  for name in ("samples", "max_new_tokens", "rows", "limit")
}
# Verifiers that no benchmark can have, and why.
_REFUSED = {
  "regex": "whose pattern is a setting of a run",
  "reasoning_gym": "which scores its own tasks alone",
}


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code of `command_line.exit_code`."""
  options = _parse(arguments)
  return command_line.exit_code(
    lambda: _evaluate(options),
    kept="the same command goes on from here",
  )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = command_line.Parser("python -m bilevel_jax.evaluate", __doc__)
  add = parser.add
  add("--weights", "where the model is", required=True)
  add("--revision", "branch, tag or commit of a hub id")
  add(
    "--benchmarks",
    f"names, with commas between: {', '.join(benchmark_table.BENCHMARKS)}",
    default=",".join(benchmark_table.FIVE),
  )
  add("--data", "directory of JSONL files, in place of the hub", pathlib.Path)
  add("--days", "LiveCodeBench's questions of 2024-08-01..2025-01-31 alone")
  add("--limit", "the first questions of each benchmark alone", int)
  add("--out", "directory of the results", pathlib.Path, required=True)
  add("--samples", "completions of each question", int, 1)
  add("--temperature", "0 is greedy", float, 0.0)
  add("--top-p", "nucleus kept", float, 1.0)
  add("--max-new-tokens", "longest completion", int, 2048)
  add("--stop", "ends a completion; repeatable", action="append")
  add("--seed", "same seed, same completions", int, 0)
  add("--system", "system message")
  add("--template", "the user's turn, with {question} where that goes")
  add(
    "--verifier",
    "what says whether an answer is right; programs and choices have their own",
    default="math",
  )
  add("--isolation", "of programs, as sandbox.isolation", default="auto")
  add("--rows", "completions sampled at once on a device", int, 64)
  add("--dtype", "float32 or bfloat16: of weights and cache")
  add(
    "--check-overlap",
    "JSONL of training data: which questions does it hold?",
    metavar="FILE",
  )
  add(
    "--against",
    "results of other weights, to be compared question by question; repeatable",
    pathlib.Path,
    action="append",
    metavar="DIR",
  )
  return parser.parse_args(arguments)


def _check(options: argparse.Namespace) -> None:
  command_line.check_bounds(options, _BOUNDS)
  if options.dtype not in (None, "float32", "bfloat16"):
    raise errors.ConfigError(
      f"--dtype takes float32 or bfloat16, got {options.dtype!r}"
    )
  if options.samples > 1 and options.temperature == 0:
    raise errors.ConfigError(
      f"--samples {options.samples} at --temperature 0 would all be the same"
    )
  if "" in (options.stop or ()):
    raise errors.ConfigError("--stop must not be empty, got ''")
  if options.template is not None:
    data_settings.check_prompt(options.template, "--template")
  if options.verifier in _REFUSED:
    raise errors.ConfigError(
      f"--verifier takes no {options.verifier}, "
      f"{_REFUSED[options.verifier]}; name a function of your own, "
      "package.module.function"
    )
  if options.verifier not in verifiers.NAMES:
    own_code.function(options.verifier, "--verifier", verifiers.NAMES)


def _sampling(options: argparse.Namespace) -> types.Sampling:
  return types.Sampling(temperature=options.temperature, top_p=options.top_p)


def _evaluate(options: argparse.Namespace) -> None:
  _check(options)
  console = rich.console.Console(stderr=True, highlight=False)
  names = list(dict.fromkeys(options.benchmarks.split(",")))
  asked = {
    name: benchmark_table.load_questions(
      name, options.data, options.limit, benchmark_table.days(options.days)
    )
    for name in names
  }
  overlap = None
  if options.check_overlap is not None:
    overlap = _overlap(options.check_overlap, asked, console)
  opened = weights.open(options.weights, revision=options.revision)
  prompt_format = sampler.prompt_format(
    opened,
    config.Tokenizer(),
    system=options.system,
    template=options.template,
  )
  date = result_files.date_of(options.out, *(options.against or ()))
  prompt_format = dataclasses.replace(
    prompt_format, date=date or prompt_format.date
  )
  tokenizers = asking.tokenizers(
    names, opened, prompt_format, own_prompt=options.template is None
  )
  tokenizer = tokenizers[names[0]]
  settings = _settings(options, opened, prompt_format, tokenizers, asked)
  together = result_files.merged(options.out, settings)
  earlier = {
    out: against.read_earlier(out, settings, asked)
    for out in options.against or ()
  }
  devices = jax.local_devices()
  with console.status(f"reading {options.weights}"):
    model = sampler.build(
      opened,
      tokenizer,
      dtype=options.dtype,
      place=functools.partial(meshes.for_sampling, devices=devices),
    )
  prompts = {
    name: [tokenizers[name].prompt_tokens(q) for q in questions]
    for name, questions in asked.items()
  }
  for name, tokens in prompts.items():
    _check_length(options, model, name, max(map(len, tokens)))
  results: dict[str, Any] = {}
  answered: dict[str, list[dict[str, Any]]] = {}
  failures: list[pool.Failure] = []
  with (
    result_files.claimed(options.out, together),
    contextlib.ExitStack() as scorers,
    rich.progress.Progress(
      rich.progress.TextColumn("{task.description}"),
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TimeRemainingColumn(),
      console=console,
      disable=not console.is_terminal,
      transient=True,
    ) as progress,
  ):
    task = progress.add_task("", total=sum(map(len, asked.values())))
    scorer_of = asking.scorers(
      asked, options.verifier, options.isolation, scorers
    )
    for name, questions in asked.items():
      scorer = scorer_of[name]
      progress.update(task, description=name)
      path = options.out / "records" / f"{name}.jsonl"
      records = result_files.resume_records(path, questions)
      progress.advance(task, len(records))
      with path.open("a", encoding="utf-8") as file:
        while len(records) < len(questions):
          new = _answer(
            options,
            model,
            scorer,
            name,
            questions,
            prompts[name],
            len(records),
          )
          file.write("".join(json.dumps(line) + "\n" for line in new))
          file.flush()
          records += new
          if not failures and (failures := scorer.take_failures()):
            _show_failure(console, failures[0])
          progress.advance(task, len(new))
          if not console.is_terminal:
            console.print(f"{name}: {len(records)} of {len(questions)}")
      first = model.tokenizer.decode(prompts[name][0])
      results[name] = summary.summarise(records) | {"first_prompt": first}
      answered[name] = records
  mean = summary.mean_of(benchmark_table.FIVE, results)
  compared = {
    str(out): against.compare(before, answered)
    for out, before in earlier.items()
  }
  result_files.write_scores(
    options.out,
    settings,
    results,
    mean_of_five=mean,
    overlap=overlap,
    against=compared or None,
    isolation=next(
      filter(None, (s.isolation for s in scorer_of.values())), None
    ),
  )
  scores.print_scores(results, mean, compared)


def _show_failure(console: rich.console.Console, first: pool.Failure) -> None:
  words = (
    f"a completion could not be scored, and counts as wrong: {first.reason}\n"
    f"completion: {first.completion:.300}"
  )
  console.print(rich.text.Text(text.visible(words)), soft_wrap=True)


def _settings(
  options: argparse.Namespace,
  opened: weights.Opened,
  prompt_format: config.Tokenizer,
  tokenizers: dict[str, tokenizer_lib.Tokenizer],
  asked: dict[str, list[types.Question]],
) -> dict[str, Any]:
  """What the scores depend on, as JSON."""
  return {
    "weights": options.weights,
    "revision": options.revision,
    "weights_hash": opened.fingerprint(),
    "benchmarks": {
      name: benchmark_table.identity(
        name,
        options.data,
        questions,
        [tokenizers[name].prompt_text(q) for q in questions],
      )
      for name, questions in asked.items()
    },
    "system_prompt": prompt_format.system_prompt,
    "prompt": prompt_format.prompt,
    "chat_template": prompt_format.chat_template,
    "use_chat_template": prompt_format.use_chat_template,
    "date": next(iter(tokenizers.values())).date,
    "samples": options.samples,
    "temperature": options.temperature,
    "top_p": options.top_p,
    "max_new_tokens": options.max_new_tokens,
    "stop": options.stop or [],
    "seed": options.seed,
    "verifier": options.verifier,
    "dtype": options.dtype,
    "versions": {
      package: importlib.metadata.version(package)
      for package in ("bilevel_jax", "jax", "math-verify")
    },
  }


def _check_length(
  options: argparse.Namespace, model: sampler.Sampler, name: str, longest: int
) -> None:
  most = model.architecture.max_positions
  if longest + options.max_new_tokens > most:
    raise errors.ConfigError(
      f"the longest prompt of {name} and --max-new-tokens "
      f"{options.max_new_tokens} come to {longest + options.max_new_tokens} "
      f"tokens, but the model has {most} positions"
    )


def _answer(
  options: argparse.Namespace,
  model: sampler.Sampler,
  scorer: pool.Scorer,
  name: str,
  questions: list[types.Question],
  prompts: list[np.ndarray],
  start: int,
) -> list[dict[str, Any]]:
  """Returns the records of the next few questions."""
  rows = options.rows * RowSharding(model.policy.rows).shards
  count = max(1, rows // options.samples)
  chosen = slice(start, start + count)
  # A question's samples depend on neither the chunk nor the other benchmarks.
  key = jax.random.fold_in(
    sampling.key(options.seed), zlib.crc32(name.encode())
  )
  answered = answers.answer(
    model.policy,
    model.weights,
    questions[chosen],
    types.Requests(
      prompts=prompts[chosen],
      prompt_ids=np.arange(start, start + len(prompts[chosen])),
      samples_per_prompt=options.samples,
      max_new_tokens=options.max_new_tokens,
      eos_ids=model.tokenizer.eos_ids,
      stop=tuple(options.stop or ()),
      sampling=_sampling(options),
      key=key,
    ),
    model.tokenizer,
    scorer,
    max_rows=rows,
    cache_bytes=cache.default_bytes(jax.local_devices()),
    sharding=model.policy.rows,
  )
  votes = benchmark_table.BENCHMARKS[name].verifier != "code"
  return [
    summary.record(answered, number, votes=votes)
    for number in range(len(prompts[chosen]))
  ]


def _overlap(
  path: str,
  asked: dict[str, list[types.Question]],
  console: rich.console.Console,
) -> dict[str, list[dict[str, Any]]]:
  training = corpora.load(config.Source(path=path))
  found = {
    name: contamination.find_overlaps(questions, training)
    for name, questions in asked.items()
  }
  for name, overlaps in found.items():
    console.print(
      f"{name}: {len(overlaps)} of {len(asked[name])} questions are in {path}"
    )
  return {
    name: [overlap._asdict() for overlap in overlaps]
    for name, overlaps in found.items()
  }


if __name__ == "__main__":
  compile_cache.enable()
  sys.exit(main())
