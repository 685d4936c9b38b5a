"""Prints how fast the rollout engine is, beside others on the same work.

Two workloads of random prompts. Uniform: a batch of rows of one length, for
each number in --rows. Long tail: requests whose lengths are sampled from a
log-normal (median 96, sigma 1, clipped to 8..512), which a static sampler
takes in batches of --batch, in the order given. Lengths are forced alike: each
side's model says EOS where the request ends, and the sampler has to notice.

  python benchmarks/rollout.py --peer tunix-env/bin/python
  python benchmarks/rollout.py --weights smollm2 --compare transformers
  python benchmarks/rollout.py --preset qwen2.5-1.5b --dtype bfloat16 \\
    --rows 64,256,1024 --layers unrolled,scanned --command-buffers on,off

--peer names the interpreter of an environment that has google-tunix:

  python3.11 -m venv tunix-env
  tunix-env/bin/pip install google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 \\
    flax==0.12.8

Every contestant is a process of its own that stays alive; they run in turn (A
B A B), so that a machine that is busy now and then is busy for all of them.
Compilation is left out, and counted. With --weights, ten questions are
answered greedily, and the texts compared.

Columns: useful tokens (those that a learner keeps) a second, median; the first
row's speed over this one's, median and range of the pairs; slots that were
computed for nothing; seconds of the first run and programs compiled in it; the
most that the cache held, and its share of one with a row of full length for
each request; where the device's limits are known, the share of the decode
roofline: the time in which the weights are read once a step and each token's
keys and values once, or the products are computed.
"""

import argparse
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.progress
import rich.table

from bilevel_jax import errors
from bilevel_jax.training import throughput
from bilevel_jax.weights import huggingface

# A script finds its own directory only.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from benchmarks.peers import contestants, side_by_side, workloads

MIB = 2.0**20


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, 2 for what the user can mend, 130 interrupted."""
  return side_by_side.main(_parse(arguments), _benchmark, _table)


def _benchmark(
  options: argparse.Namespace, scratch: pathlib.Path
) -> side_by_side.Figures:
  _check_options(options)
  architecture, model = _model(options, scratch)
  asked = workloads.workloads(options, architecture.vocab_size)
  set_up = {
    "model": str(model),
    "random": options.weights is None,
    "dtype": options.dtype,
  }
  about, turns = side_by_side.take_turns(
    contestants.plans(options), set_up, asked, options.repeats, check=_check
  )
  return {
    "settings": {k: str(v) for k, v in vars(options).items()},
    "contestants": about,
    "rows": [
      row for turn in turns for row in _rows(options, architecture, turn)
    ],
  }


def _check_options(options):
  for first, second in (("weights", "peer"), ("weights", "preset")):
    if getattr(options, first) and getattr(options, second):
      raise errors.ConfigError(
        f"--{first} must stand without --{second}, got both"
      )
  if (options.bandwidth is None) != (options.tflops is None):
    raise errors.ConfigError(
      "--bandwidth and --tflops must be given together, got one of them"
    )


def _model(options, scratch):
  """The architecture, and a directory with its config.json."""
  if options.weights is not None:
    directory = huggingface.resolve(options.weights).absolute()
    return huggingface.read_architecture(directory), directory
  return side_by_side.random_model(options, scratch), scratch


def _check(workload, run, contestant):
  if workload.lengths is not None and run["lengths"] != workload.lengths:
    raise errors.ConfigError(
      f"{contestant} must make completions of the lengths that it is asked "
      f"for, got {run['lengths'][:8]}... for {workload.lengths[:8]}..."
    )


def _limits(options, device):
  """(bytes, operations) a second of the device; None: not known."""
  if options.bandwidth is not None:
    return options.bandwidth * 1e12, options.tflops * 1e12
  # What is published holds for bfloat16.
  return throughput.limits(device) if options.dtype == "bfloat16" else None


def _rows(options, architecture, turn):
  """A row of the table for each contestant; the first is what ours means."""
  workload, running, runs = turn
  full = [len(p) + workload.budget for p in workload.prompts]
  a = architecture
  size = 4 if options.dtype == "float32" else 2
  static = sum(full) * 2 * a.layers * a.kv_heads * a.head_dim * size
  speed = lambda run: sum(run["lengths"]) / run["seconds"]
  rows = []
  for number, contestant in enumerate(running):
    timed = runs[number][1:]
    useful = sum(timed[-1]["lengths"])
    row = {
      "workload": workload.name,
      **turn.row(number, speed),
      "useful_tokens": useful,
      "useful_tokens_per_s": statistics.median(map(speed, timed)),
      "padded_share": 1 - useful / timed[-1]["slots"],
      "cache_mib": timed[-1]["cache_bytes"] / MIB,
      "cache_share_of_static": timed[-1]["cache_bytes"] / static,
      "same_texts": sum(
        x == y
        for x, y in zip(runs[0][-1]["tokens"], timed[-1]["tokens"], strict=True)
      )
      if workload.temperature == 0
      else None,
      "roofline_share": None,
    }
    limits = _limits(options, contestant.about["device"])
    if limits is not None:
      least = workloads.roofline_seconds(
        architecture,
        timed[-1]["lengths"],
        round(statistics.mean(map(len, workload.prompts))),
        bytes_per_number=size,
        bandwidth=limits[0],
        flops=limits[1],
      )
      row["roofline_share"] = least / statistics.median(row["seconds"])
    rows.append(row)
  return rows


def _table(figures: dict[str, Any]) -> rich.table.Table:
  columns = {
    "useful tok/s": lambda row: f"{row['useful_tokens_per_s']:,.0f}",
    **side_by_side.compared(figures),
    "padded": lambda row: f"{row['padded_share']:.0%}",
    "first run s": lambda row: f"{row['first_seconds']:.1f}",
    "compiled": lambda row: str(row["compilations"]),
    "cache MiB": lambda row: f"{row['cache_mib']:.1f}",
    "of static": lambda row: f"{row['cache_share_of_static']:.0%}",
    "same texts": lambda row: str(row["same_texts"]),
    "roofline": lambda row: f"{row['roofline_share']:.0%}",
  }
  for title, name in (
    ("same texts", "same_texts"),
    ("roofline", "roofline_share"),
  ):
    if any(row[name] is None for row in figures["rows"]):
      del columns[title]
  return side_by_side.table("workload", figures, columns)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  choice = contestants.choices
  add = parser.add_argument
  side_by_side.add_options(add)
  add(
    "--compare",
    choices=("transformers",),
    help="also against transformers' generate, from this interpreter",
  )
  add("--weights", metavar="DIR", help="real weights, on ten questions")
  add(
    "--workloads",
    type=choice("uniform", "long-tail"),
    metavar="LIST",
    default=["uniform", "long-tail"],
    help="uniform,long-tail (default both)",
  )
  add(
    "--rows",
    type=contestants.counts,
    metavar="LIST",
    default=[32],
    help="of the uniform workloads, such as 64,256,1024 (default 32)",
  )
  add(
    "--new-tokens",
    type=contestants.count,
    metavar="N",
    default=64,
    help="of a uniform row or a real question (default 64)",
  )
  add(
    "--requests",
    type=contestants.count,
    metavar="N",
    default=256,
    help="of the long tail (default 256)",
  )
  add(
    "--batch",
    type=contestants.count,
    metavar="N",
    default=32,
    help="of a static sampler on the long tail (default 32)",
  )
  add(
    "--layers",
    type=choice("unrolled", "scanned"),
    metavar="LIST",
    default=["unrolled"],
    help="how we decode: unrolled,scanned (default unrolled)",
  )
  add(
    "--command-buffers",
    type=choice("on", "off"),
    metavar="LIST",
    default=[None],
    help="XLA's on a GPU: on,off (default as XLA does)",
  )
  add("--bandwidth", type=float, metavar="TB/S", help="of the device's memory")
  add("--tflops", type=float, metavar="X", help="of the device, in --dtype")
  return parser.parse_args(arguments)


if __name__ == "__main__":
  sys.exit(main())
