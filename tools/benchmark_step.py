"""Prints how fast a training update is, beside google-tunix's on the same work.

Updates: an SFT step, a GRPO update (no KL term, one update a rollout), a BRIDGE
update (the same rollouts, and demonstrations with a fifth of their tokens).
Each with full-length rows, where there is no waste to save, and with real
lengths: demonstrations as long as GSM8K's, completions of log-normal lengths
(median 96, sigma 1, clipped to 8..512), a third of their groups without
advantage.

  python tools/benchmark_step.py --peer tunix-env/bin/python
  python tools/benchmark_step.py --preset qwen2.5-1.5b --dtype bfloat16 \\
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
import contextlib
import itertools
import json
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.progress
import rich.table

from bilevel_jax import config
from bilevel_jax.models import huggingface_config, layers, presets
from bilevel_jax.training import throughput

# A script finds its own directory only, and tools are no package.
sys.path.append(str(pathlib.Path(__file__).parents[1]))
from tools.peers import contestants, updates, workloads

MIB = 2.0**20


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, 2 for what the user can mend, 130 interrupted."""
  options = _parse(arguments)
  console = rich.console.Console()
  try:
    with tempfile.TemporaryDirectory() as scratch:
      figures = benchmark(options, pathlib.Path(scratch))
    if options.json is not None:
      options.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
  except (config.ConfigError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130
  if not console.is_terminal:
    console.width = 160  # a file or a pipe has no width
  console.print(_table(figures))
  return 0


def benchmark(
  options: argparse.Namespace, scratch: pathlib.Path
) -> dict[str, Any]:
  """Returns every figure, as JSON can hold them.

  Args:
    options: of the command line.
    scratch: a directory to write to.

  Raises:
    ConfigError: an option that cannot be met, or a contestant that fails.
  """
  architecture = workloads.BENCH
  if options.preset is not None:
    architecture = presets.get(options.preset)
  fields = huggingface_config.config_fields(
    architecture, options.dtype, {"eos_token_id": workloads.EOS}
  )
  (scratch / "config.json").write_text(json.dumps(fields), "utf-8")
  set_up = {
    "model": str(scratch),
    "dtype": options.dtype,
    "micro_batch_tokens": options.micro_batch_tokens,
    "row_tokens": options.row_tokens,
  }
  asked = updates.works(options.updates, architecture.vocab_size)
  screen = rich.console.Console(stderr=True)
  with contextlib.ExitStack() as stack:
    with screen.status("starting the contestants"):
      running = [
        stack.enter_context(contestants.Contestant(plan, set_up))
        for plan in _plans(options)
      ]
    progress = stack.enter_context(
      rich.progress.Progress(
        console=screen, transient=True, disable=not screen.is_terminal
      )
    )
    total = len(asked) * len(running) * (1 + options.repeats)
    task = progress.add_task("", total=total)
    rows: list[dict[str, Any]] = []
    for work in asked:
      able = [c for c in running if work.method != "bridge" or _ours(c)]
      runs: list[list[dict[str, Any]]] = [[] for _ in able]
      for seed in range(1 + options.repeats):
        for contestant, own in zip(able, runs, strict=True):
          progress.update(task, description=f"{work.name}: {contestant}")
          own.append(contestant.run(work.request(seed)))
          progress.advance(task)
      rows += _rows(work, able, runs, rows)
  return {
    "settings": {k: str(v) for k, v in vars(options).items()},
    "contestants": [
      {"label": str(contestant), **contestant.about} for contestant in running
    ],
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
        "tools.peers.bilevel_jax_step",
        {"attention": attention, "remat": remat},
        {},
      )
    )
  if options.peer is not None:
    made.append(
      contestants.Plan("tunix", options.peer, "tools.peers.tunix_step", {}, {})
    )
  return made


def _ours(contestant) -> bool:
  return str(contestant).startswith("ours")


def _rows(work, running, runs, before):
  rows = []
  for contestant, (first, *timed) in zip(running, runs, strict=True):
    seconds = [run["seconds"] for run in timed]
    ratios = [
      run["seconds"] / own["seconds"]
      for run, own in zip(timed, runs[0][1:], strict=True)
    ]
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
        "contestant": str(contestant),
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "useful_tokens_per_s": work.tokens / statistics.median(seconds),
        "ours_over_it": statistics.median(ratios),
        "ours_over_it_range": [min(ratios), max(ratios)],
        "padded_share": first["padded_share"],
        "mib": first["bytes"] / MIB,
        "first_seconds": first["seconds"],
        "compilations": first["compilations"],
        "compilations_while_timed": sum(run["compilations"] for run in timed),
        "over_grpo": statistics.median(seconds) / grpo[0] if grpo else None,
        "mfu": first["flops"] / statistics.median(seconds) / limits.flops
        if limits and first["flops"]
        else None,
        "tflops": first["flops"] / statistics.median(seconds) / 1e12
        if first["flops"]
        else None,
      }
    )
  return rows


def _table(figures: dict[str, Any]) -> rich.table.Table:
  first = figures["contestants"][0]["label"]
  compared = lambda row, text: "" if row["contestant"] == first else text
  given = lambda value, form: "" if value is None else form.format(value)
  columns = {
    "useful tok/s": lambda row: f"{row['useful_tokens_per_s']:,.0f}",
    "ours / it": lambda row: compared(row, f"{row['ours_over_it']:.2f}"),
    "range": lambda row: compared(
      row, "{:.2f}..{:.2f}".format(*row["ours_over_it_range"])
    ),
    "padded": lambda row: f"{row['padded_share']:.0%}",
    "MiB": lambda row: f"{row['mib']:,.0f}",
    "first run s": lambda row: f"{row['first_seconds']:.1f}",
    "compiled": lambda row: str(row["compilations"]),
    "/ GRPO": lambda row: given(row["over_grpo"], "{:.2f}"),
    "TFLOP/s": lambda row: given(row["tflops"], "{:.3f}"),
    "MFU": lambda row: given(row["mfu"], "{:.0%}"),
  }
  table = rich.table.Table(
    "update",
    "contestant",
    *(rich.table.Column(title, justify="right") for title in columns),
    caption="\n".join(
      f"{c['label']}: {c['name']}, {c['device']}, {c['parameters']:,} "
      "parameters"
      for c in figures["contestants"]
    ),
  )
  for row in figures["rows"]:
    if row["contestant"] == first:
      table.add_section()
    table.add_row(
      row["update"] if row["contestant"] == first else "",
      row["contestant"],
      *(show(row) for show in columns.values()),
    )
  return table


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--peer", metavar="PYTHON", help="interpreter that has google-tunix")
  add("--preset", metavar="NAME", help="random weights of this architecture")
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
    "--repeats",
    type=contestants.count,
    metavar="N",
    default=5,
    help="timed runs of each (default 5)",
  )
  add("--dtype", choices=("float32", "bfloat16"), default="float32")
  add(
    "--json", type=pathlib.Path, metavar="FILE", help="write the figures here"
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
