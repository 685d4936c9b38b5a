"""Makes the weak policy that configs/quickstart.py starts from.

Writes a character tokenizer, trains by configs/arithmetic_pretraining.py and
then by configs/arithmetic_guessing.py, and keeps what the second run exports,
in bfloat16: config.json, model.safetensors and the tokenizer's files. The
command that made the one in the package:

    python tools/make_arithmetic_policy.py \\
      --out bilevel_jax/assets/arithmetic_policy

An interrupted run goes on where it was with the same command.
"""

import argparse
import json
import pathlib
import shutil
import sys

import jax
import ml_collections
import rich.console
import rich.table

from bilevel_jax import config, train
from bilevel_jax.data import tokenizer
from bilevel_jax.weights import huggingface

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from configs import arithmetic_guessing, arithmetic_pretraining


def main() -> None:
  """Trains, exports, and prints what came of it."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument(
    "--work",
    type=pathlib.Path,
    default=pathlib.Path("runs/arithmetic_policy"),
    help="where the two runs leave their files, and are continued from",
  )
  parser.add_argument(
    "--steps", type=int, help="of the first run; default: the config's"
  )
  parser.add_argument("--json", type=pathlib.Path, help="write the figures")
  arguments = parser.parse_args()
  characters = arguments.work / "tokenizer"
  tokenizer.character_tokenizer(characters)
  reasoner = arithmetic_pretraining.get_config()
  reasoner.tokenizer.path = str(characters)
  if arguments.steps is not None:
    reasoner.steps = arguments.steps
  guesser = arithmetic_guessing.get_config()
  guesser.model.weights = str(_trained(reasoner, arguments.work / "reasoner"))
  exported = _trained(guesser, arguments.work / "guesser")
  architecture = huggingface.read_architecture(exported)
  base = huggingface.load_base(exported, architecture)
  shutil.rmtree(arguments.out, ignore_errors=True)
  huggingface.export(
    arguments.out,
    architecture,
    base,
    source_directory=exported,
    dtype="bfloat16",
  )
  logged = (exported.parent / "metrics.jsonl").read_text().splitlines()
  figures = {
    "parameters": sum(x.size for x in jax.tree.leaves(base)),
    "bytes": (arguments.out / "model.safetensors").stat().st_size,
    "accuracy": json.loads(logged[-1])["evaluation/accuracy"],
  }
  table = rich.table.Table("figure", "value")
  for name, value in figures.items():
    table.add_row(name, str(value))
  rich.console.Console().print(table)
  if arguments.json:
    arguments.json.write_text(json.dumps(figures, indent=2))


def _trained(
  settings: ml_collections.ConfigDict, run_dir: pathlib.Path
) -> pathlib.Path:
  """Trains, or goes on, or finds it done; returns the exported weights."""
  settings.run_dir = str(run_dir)
  settings.resume = run_dir.exists()
  if not (run_dir / "report.html").exists():  # what a run writes last
    train.run(config.parse(settings))
  return run_dir / "export"


if __name__ == "__main__":
  main()
