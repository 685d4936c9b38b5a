"""Ranks demonstrations by what they do for the reward; trains nothing.

  python -m bilevel_jax.rank --config FILE.py [--config.FIELD=VALUE ...]
    [--times 16] [--out DIR]
  python -m bilevel_jax.rank --keep-above 0.5 DIR > kept.jsonl

The first form takes the model, questions, rewards and demonstrations of a
config file. The policy answers questions, `times` batches of them for each
demonstration, and every batch says which demonstrations its reward's gradient
agrees with (docs/how_to/rank_demonstrations.md). DIR is a run directory,
RUN_DIR-ranking if none is given: its `demonstrations.jsonl` has a line for each
one, the largest weight first, its `report.html` the most and least useful ones.

The second prints the lines of `demonstrations.jsonl`, of a ranking or of a run
of BRIDGE, whose weight is above a bound. They have the fields of a data file,
so data.demonstrations.path takes them.

The exit codes are those of `bilevel_jax.main`.
"""

import argparse
import functools
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections

from bilevel_jax import (
  command_line,
  compile_cache,
  config,
  errors,
  main,
  methods,
  train,
)
from bilevel_jax.runs import directory, records
from bilevel_jax.training import sources

_MOST_AT_ONCE = 512  # demonstrations that a batch of answers says something of
_ALONE = methods.RANKING | {
  "rl.updates_per_rollout": 1,
  "rl.passes_per_rollout": 1,
  "optimizer.base.schedule": "constant",
  "optimizer.base.warmup_steps": 0,
  "training.max_sampled_tokens": None,
  "training.max_update_flops": None,
  "data.evaluation.path": None,
  "data.evaluation.hub": None,
  "data.evaluation.task": None,
  "checkpoints.export": False,
}


def settings_of(
  settings: config.Config, times: int, out: str | None = None
) -> config.Config:
  """Returns the settings of a run that ranks and does nothing else.

  Args:
    settings: of the model, the questions, the reward and the demonstrations.
    times: batches of answers for each demonstration.
    out: its run directory; None: that of the settings, with `-ranking`.

  Raises:
    ConfigError: something that cannot be read, or no demonstrations.
  """
  model = sources.build_model(settings, sources.open_model(settings))
  stream = sources.build_streams(settings, model.tokenizer).demonstrations
  if stream is None:
    raise errors.ConfigError(
      "data.demonstrations_per_step must be at least 1 to rank, got 0"
    )
  at_once = min(len(stream), _MOST_AT_ONCE)
  changed = ml_collections.ConfigDict(config.to_dict(settings))
  with changed.ignore_type():
    changed.update_from_flattened_dict(
      _ALONE
      | {
        "run_dir": out or f"{settings.run_dir}-ranking",
        "steps": -(-times * len(stream) // at_once),
        "data.demonstrations_per_step": at_once,
      }
    )
  return config.parse(changed)


def kept(path: str | pathlib.Path, above: float) -> list[dict[str, Any]]:
  """Returns the demonstrations of a ranking whose weight is above a bound.

  Args:
    path: a run directory, or its `demonstrations.jsonl`.

  Raises:
    ConfigError: no such file, or not of that kind.
  """
  file = pathlib.Path(path)
  if file.is_dir():
    file = directory.RunDirectory(file).demonstrations
  if not file.is_file():
    raise errors.ConfigError(
      f"{file} does not exist: a ranking leaves it, and a run of BRIDGE with "
      "method.bridge.upper=demonstrations"
    )
  rows = records.read_records(file)
  if wrong := [row for row in rows if "weight" not in row]:
    raise errors.ConfigError(
      f"{file} must have a weight in every line, got one with the fields "
      f"{', '.join(wrong[0])}"
    )
  return [row for row in rows if row["weight"] > above]


def rank() -> None:
  """Ranks, or prints what is kept of a ranking, and exits."""
  options, rest = _parse(sys.argv[1:])
  if options.keep_above is not None:
    sys.exit(command_line.exit_code(lambda: _print_kept(options)))
  main.run(functools.partial(_rank, options), [sys.argv[0], *rest])


def _parse(
  arguments: Sequence[str],
) -> tuple[argparse.Namespace, list[str]]:
  """Returns the options, and what is for the settings."""
  parser = command_line.Parser("python -m bilevel_jax.rank", __doc__)
  parser.add("--times", "batches for each", int, 16, metavar="N")
  parser.add("--out", "run directory of the ranking", metavar="DIR")
  parser.add(
    "--keep-above",
    "print what has a weight above T in the ranking DIR",
    nargs=2,
    metavar=("T", "DIR"),
  )
  options, rest = parser.parse_known_args(arguments)
  if options.keep_above is not None and rest:
    parser.error(f"--keep-above T DIR must stand alone, got {' '.join(rest)}")
  return options, rest


def _rank(options: argparse.Namespace, arguments: Sequence[str]) -> None:
  command_line.check_bounds(options, {"times": {"at_least": 1}})
  settings = main.read_settings(arguments)
  compile_cache.enable()
  main.start_processes()
  train.run(settings_of(settings, options.times, options.out))


def _print_kept(options: argparse.Namespace) -> None:
  text, path = options.keep_above
  try:
    above = float(text)
  except ValueError:
    above = math.nan
  if not math.isfinite(above):
    raise errors.ConfigError(
      f"--keep-above must begin with a number, got {text}"
    )
  for row in kept(path, above):
    sys.stdout.buffer.write(records.to_json(row) + b"\n")


if __name__ == "__main__":
  rank()
