"""Makes the weak policy that configs/quickstart.py starts from.

Writes a character tokenizer, trains by configs/arithmetic_pretraining.py and
then by configs/arithmetic_guessing.py, and keeps what the second run exports,
in bfloat16: config.json, model.safetensors and the tokenizer's files. The
command that made the one in the package:

    python tools/make_arithmetic_policy.py \
      --out bilevel_jax/assets/arithmetic_policy
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import jax
import rich.console
import rich.table

from bilevel_jax import config, train
from bilevel_jax.data import tokenizer
from bilevel_jax.models import (
  huggingface,
)

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from configs import arithmetic_guessing, arithmetic_pretraining


def main() -> None:
  """Trains, exports, and prints what came of it."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument(
    "--steps", type=int, help="of the first run; default: the config's"
  )
  parser.add_argument("--json", type=pathlib.Path, help="write the figures")
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    characters = pathlib.Path(scratch) / "tokenizer"
    tokenizer.character_tokenizer(characters)
    reasoner = arithmetic_pretraining.get_config()
    reasoner.tokenizer.path = str(characters)
    reasoner.run_dir = str(pathlib.Path(scratch) / "reasoner")
    if arguments.steps is not None:
      reasoner.steps = arguments.steps
    train.run(config.parse(reasoner))
    guesser = arithmetic_guessing.get_config()
    guesser.model.weights = str(pathlib.Path(reasoner.run_dir) / "export")
    guesser.run_dir = str(pathlib.Path(scratch) / "guesser")
    summary = train.run(config.parse(guesser))
    exported = pathlib.Path(guesser.run_dir) / "export"
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
  size = (arguments.out / "model.safetensors").stat().st_size
  figures = {
    "parameters": sum(x.size for x in jax.tree.leaves(base)),
    "bytes": size,
    "accuracy": summary.after.accuracy if summary.after else None,
  }
  table = rich.table.Table("figure", "value")
  for name, value in figures.items():
    table.add_row(name, str(value))
  rich.console.Console().print(table)
  if arguments.json:
    arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
  main()
