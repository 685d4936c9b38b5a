"""Turns weights from anywhere into a Hugging Face directory.

SOURCE is a Hugging Face directory (safetensors, single or sharded), a hub id,
a .gguf file, or a run directory, whose export is meant. The tokenizer, the
chat template and the generation config come along.

  python tools/convert_weights.py Qwen/Qwen2.5-0.5B --out qwen
  python tools/convert_weights.py model.Q4_K_M.gguf --out model
  python tools/convert_weights.py runs/mine --out mine --dtype bfloat16

The whole model is in host memory meanwhile, in float32. An interrupted run
leaves OUT as it was.
"""

import argparse
import json
import math
import pathlib
import re
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import rich.console
import rich.progress
import rich.table

from bilevel_jax import command_line, errors, fields, weights
from bilevel_jax.weights import huggingface, safetensors_files


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code of `command_line.exit_code`."""
  parser = command_line.Parser("python tools/convert_weights.py", __doc__)
  add = parser.add
  parser.add_argument("source", metavar="SOURCE", help="where the weights are")
  add("--out", "directory to write", pathlib.Path, required=True)
  add("--revision", "branch, tag or commit of a hub id")
  add(
    "--dtype",
    "of the weights written; float32 loses nothing",
    default="float32",
    choices=("float32", "bfloat16"),
  )
  add(
    "--shard-gb",
    "most gigabytes of tensors in one file",
    float,
    5.0,
    metavar="GB",
  )
  parser.add_argument(
    "--force", action="store_true", help="write into OUT even if it has files"
  )
  add("--json", "also write the table", pathlib.Path, metavar="FILE")
  options = parser.parse_args(arguments)
  # The host does all the work, and may have far more memory than a device.
  jax.config.update("jax_platforms", "cpu")
  return command_line.exit_code(
    lambda: _convert(options),
    kept=f"{options.out} is as it was",
  )


def _convert(options: argparse.Namespace) -> None:
  figures = convert(
    options.source,
    options.out,
    revision=options.revision,
    dtype=options.dtype,
    shard_gb=options.shard_gb,
    force=options.force,
  )
  if options.json is not None:
    options.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
  console = rich.console.Console()
  if not console.is_terminal:
    console.width = 120  # a file or a pipe has no width; names fit into this
  console.print(_table(figures))


def convert(
  source: str,
  out: pathlib.Path,
  *,
  revision: str | None = None,
  dtype: str = "float32",
  shard_gb: float = 5.0,
  force: bool = False,
) -> dict[str, Any]:
  """Returns figures of the directory written, for the table and the JSON.

  Args:
    source: a Hugging Face or run directory, a hub id, or a .gguf file.
    out: directory to write.
    revision: branch, tag or commit of a hub id.
    dtype: float32 or bfloat16, of the weights written.
    shard_gb: most gigabytes of tensors in one file.
    force: write into a directory that has files, over those of their names.

  Raises:
    ConfigError: the source cannot be read, or `out` has files.
  """
  if expected := fields.must_be(shard_gb, {"above": 0, "below": 2**31}):
    raise errors.ConfigError(f"--shard-gb must be {expected}, got {shard_gb}")
  if out.is_dir() and any(out.iterdir()) and not force:
    raise errors.ConfigError(
      f"--out must be empty or absent (or give --force), got {out}"
    )
  with tempfile.TemporaryDirectory() as scratch:
    opened = weights.open(source, revision=revision)
    architecture = opened.architecture
    files = opened.tokenizer_files(pathlib.Path(scratch))
    if files.resolve() == out.resolve():
      raise errors.ConfigError(f"--out must not be the source, got {out}")
    screen = rich.console.Console(stderr=True)
    with rich.progress.Progress(
      console=screen, transient=True, disable=not screen.is_terminal
    ) as progress:
      task = progress.add_task(f"writing {dtype} weights", total=None)
      huggingface.export(
        out,
        architecture,
        opened.read(None),
        source_directory=files,
        dtype=dtype,
        shard_bytes=int(shard_gb * 1e9),
        progress=lambda done, total: progress.update(
          task, completed=done, total=total
        ),
      )
  tensors = _tensors(out)
  return {
    "source": source,
    "out": str(out),
    "family": architecture.family,
    "parameters": sum(row["parameters"] for row in tensors),
    "bytes": sum(path.stat().st_size for path in out.glob("*.safetensors")),
    "files": len(list(out.glob("*.safetensors"))),
    "tensors": tensors,
  }


def _tensors(out: pathlib.Path) -> list[dict[str, Any]]:
  """Returns a row for each kind of tensor; the layers' share one."""
  rows: dict[str, dict[str, Any]] = {}
  stored = safetensors_files.open_directory(out)
  total = sum(math.prod(tensor.shape) for tensor in stored.values())
  for name, tensor in stored.items():
    kind = re.sub(r"\.\d+\.", ".*.", name)
    row = rows.setdefault(
      kind,
      {
        "name": kind,
        "count": 0,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype.name,
        "parameters": 0,
      },
    )
    row["count"] += 1
    row["parameters"] += math.prod(tensor.shape)
    row["share"] = row["parameters"] / total
  return list(rows.values())


def _table(figures: dict[str, Any]) -> rich.table.Table:
  table = rich.table.Table(
    rich.table.Column("tensor", overflow="fold"),
    rich.table.Column("count", justify="right"),
    "shape",
    "dtype",
    rich.table.Column("parameters", justify="right"),
    rich.table.Column("share", justify="right"),
    title=f"{figures['source']} -> {figures['out']}",
    caption=f"{figures['family']}, {figures['parameters']:,} parameters, "
    f"{figures['bytes']:,} bytes in {figures['files']} files",
  )
  for row in figures["tensors"]:
    table.add_row(
      row["name"],
      str(row["count"]),
      " x ".join(map(str, row["shape"])),
      row["dtype"],
      f"{row['parameters']:,}",
      f"{row['share']:.1%}",
    )
  return table


if __name__ == "__main__":
  sys.exit(main())
