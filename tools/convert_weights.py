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

from bilevel_jax import config
from bilevel_jax.models import huggingface, safetensors_files, sources


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, 2 for what the user can mend, 130 interrupted."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("source", metavar="SOURCE", help="where the weights are")
  parser.add_argument(
    "--out", required=True, type=pathlib.Path, help="directory to write"
  )
  parser.add_argument("--revision", help="branch, tag or commit of a hub id")
  parser.add_argument(
    "--dtype",
    default="float32",
    choices=("float32", "bfloat16"),
    help="of the weights written; float32 loses nothing (default)",
  )
  parser.add_argument(
    "--shard-gb",
    default=5.0,
    type=float,
    metavar="GB",
    help="most gigabytes of tensors in one file (default 5)",
  )
  parser.add_argument(
    "--force", action="store_true", help="write into OUT even if it has files"
  )
  parser.add_argument(
    "--json", type=pathlib.Path, metavar="FILE", help="also write the table"
  )
  options = parser.parse_args(arguments)
  # The host does all the work, and may have far more memory than a device.
  jax.config.update("jax_platforms", "cpu")
  try:
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
  except (config.ConfigError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f"interrupted: {options.out} is as it was", file=sys.stderr)
    return 130
  console = rich.console.Console()
  if not console.is_terminal:
    console.width = 120  # a file or a pipe has no width; names fit into this
  console.print(_table(figures))
  return 0


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
  if shard_gb <= 0:
    raise config.ConfigError(f"--shard-gb must be above 0, got {shard_gb}")
  if out.is_dir() and any(out.iterdir()) and not force:
    raise config.ConfigError(
      f"--out must be empty or absent (or give --force), got {out}"
    )
  with tempfile.TemporaryDirectory() as scratch:
    architecture, base, files = sources.load(
      source, pathlib.Path(scratch), revision=revision
    )
    if files.resolve() == out.resolve():
      raise config.ConfigError(f"--out must not be the source, got {out}")
    screen = rich.console.Console(stderr=True)
    with rich.progress.Progress(
      console=screen, transient=True, disable=not screen.is_terminal
    ) as progress:
      task = progress.add_task(f"writing {dtype} weights", total=None)
      huggingface.export(
        out,
        architecture,
        base,
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
  stored = safetensors_files.read_directory(out)
  total = sum(tensor.size for tensor in stored.values())
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
    row["parameters"] += tensor.size
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
