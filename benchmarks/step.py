"""Prints how fast a training update is, beside google-tunix's on the same work.

Updates: an SFT step, a GRPO update (no KL term, one update a rollout), a BRIDGE
update (the same rollouts, and demonstrations with a fifth of their tokens).
Each with full-length rows, where there is no waste to save, and with real
lengths: demonstrations as long as GSM8K's, completions of log-normal lengths
(median 96, sigma 1, clipped to 8..512), a third of their groups without
advantage.

  python benchmarks/step.py --peer tunix-env/bin/python
  python benchmarks/step.py --preset qwen2.5-1.5b --dtype bfloat16 \\
    --attention chunked,cudnn --remat everything,attention_and_mlp

--peer names the interpreter of an environment that has google-tunix:

  python3.11 -m venv tunix-env
  tunix-env/bin/pip install google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 \\
    flax==0.12.8

Every contestant is a process of its own that stays alive; they run in turn (A
B A B), so that a machine that is busy now and then is busy for all of them.
Compilation is left out, and counted. Our time has the packing of rows and
their transfer in it; the peer's is its compiled step alone, on rows padded to
the longest.

Columns: useful tokens (of prompts and completions, padding left out) a second,
median; the first contestant's speed over this one's, median and range of the
pairs; columns computed for no token; the most memory that the compiler plans
for; seconds of the first run and programs compiled in it; the time over that
of our GRPO update on the same lengths; where the device is known, the MFU
(`bilevel_jax.training.throughput`).
"""

import argparse
import itertools
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.progress
import rich.table

from bilevel_jax.models import layers
from bilevel_jax.training import throughput

# A script finds its own directory only.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from benchmarks.peers import contestants, side_by_side, updates

MIB = 2.0**20


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, 2 for what the user can mend, 130 interrupted."""
  return side_by_side.main(_parse(arguments), _benchmark, _table)


def _benchmark(
  options: argparse.Namespace, scratch: pathlib.Path
) -> side_by_side.Figures:
  architecture = side_by_side.random_model(options, scratch)
  set_up = {
    "model": str(scratch),
    "dtype": options.dtype,
    "micro_batch_tokens": options.micro_batch_tokens,
    "row_tokens": options.row_tokens,
    "logprob_chunk": options.logprob_chunk,
  }
  asked = updates.works(options.updates, architecture.vocab_size)
  about, turns = side_by_side.take_turns(
    _plans(options), set_up, asked, options.repeats, able=_able
  )
  rows: list[dict[str, Any]] = []
  for turn in turns:
    rows += _rows(turn, rows)
  return {
    "settings": {k: str(v) for k, v in vars(options).items()},
    "contestants": about,
    "rows": rows,
  }


def _plans(options):
  made = []
  for attention, remat in itertools.product(options.attention, options.remat):
    words = [attention] if len(options.attention) > 1 else []
    words += [remat] if len(options.remat) > 1 else []
    made.append(
      contestants.Plan(
        ", ".join(["ours", *words]),
        sys.executable,
        "benchmarks.peers.bilevel_jax_step",
        {"attention": attention, "remat": remat},
        {},
      )
    )
  if options.peer is not None:
    made.append(
      contestants.Plan(
        "tunix", options.peer, "benchmarks.peers.tunix_step", {}, {}
      )
    )
  return made


def _able(work, contestant):
  """Nobody else has a BRIDGE update."""
  return work.method != "bridge" or contestant.startswith("ours")


def _rows(turn, before):
  work, rows = turn.asked, []
  for number, contestant in enumerate(turn.running):
    first = turn.runs[number][0]
    row = turn.row(number)
    median = statistics.median(row["seconds"])
    kind = work.name.split(", ")[1]
    grpo = [
      row["median_seconds"]
      for row in before
      if row["update"] == f"grpo, {kind}"
      and row["contestant"] == str(contestant)
    ]
    limits = throughput.limits(contestant.about["device"])
    rows.append(
      {
        "update": work.name,
        **row,
        "median_seconds": median,
        "useful_tokens_per_s": work.tokens / median,
        "padded_share": first["padded_share"],
        "mib": first["bytes"] / MIB,
        "over_grpo": median / grpo[0] if grpo else None,
        "mfu": first["flops"] / median / limits.flops
        if limits and first["flops"]
        else None,
        "tflops": first["flops"] / median / 1e12 if first["flops"] else None,
      }
    )
  return rows


def _table(figures: dict[str, Any]) -> rich.table.Table:
  given = lambda value, form: "" if value is None else form.format(value)
  columns = {
    "useful tok/s": lambda row: f"{row['useful_tokens_per_s']:,.0f}",
    **side_by_side.compared(figures),
    "padded": lambda row: f"{row['padded_share']:.0%}",
    "MiB": lambda row: f"{row['mib']:,.0f}",
    "first run s": lambda row: f"{row['first_seconds']:.1f}",
    "compiled": lambda row: str(row["compilations"]),
    "/ GRPO": lambda row: given(row["over_grpo"], "{:.2f}"),
    "TFLOP/s": lambda row: given(row["tflops"], "{:.3f}"),
    "MFU": lambda row: given(row["mfu"], "{:.0%}"),
  }
  return side_by_side.table("update", figures, columns)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  side_by_side.add_options(add)
  add(
    "--updates",
    type=lambda text: _names(text),
    metavar="LIST",
    default=list(updates.NAMES),
    help=f"of {'; '.join(updates.NAMES)}, with semicolons (default all)",
  )
  add(
    "--attention",
    type=contestants.choices("auto", "xla", "chunked", "cudnn"),
    metavar="LIST",
    default=["auto"],
    help="our kernels (default auto)",
  )
  add(
    "--remat",
    type=contestants.choices(*layers.REMAT),
    metavar="LIST",
    default=["none"],
    help="our rematerialisation (default none)",
  )
  add(
    "--micro-batch-tokens",
    type=contestants.count,
    metavar="N",
    default=1024,
    help="of our forward passes (default 1024)",
  )
  add(
    "--row-tokens",
    type=contestants.count,
    metavar="N",
    default=512,
    help="columns of our rows, at least (default 512)",
  )
  add(
    "--logprob-chunk",
    type=contestants.count,
    metavar="N",
    default=1024,
    help="tokens whose logits we have in memory at once (default 1024)",
  )
  return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
  names = [name.strip() for name in text.split(";")]
  for name in names:
    if name not in updates.NAMES:
      raise argparse.ArgumentTypeError(
        f"must be of {'; '.join(updates.NAMES)}, got {name!r}"
      )
  return names


if __name__ == "__main__":
  sys.exit(main())
