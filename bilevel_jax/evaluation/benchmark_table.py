"""The benchmarks that are known by name: where each comes from, pinned."""

import pathlib
from typing import NamedTuple

from bilevel_jax import config, errors, types
from bilevel_jax.data import corpora


class Benchmark(NamedTuple):
  """A set of questions."""

  source: config.Source  # on the hub
  file: str  # of a local copy with our own names, without .jsonl or .jsonl.gz


def _hub(
  file: str,
  hub: str,
  revision: str,
  *,
  name: str | None = None,
  split: str = "test",
  **fields: str,
) -> Benchmark:
  source = config.Source(
    hub=hub, name=name, split=split, revision=revision, fields=fields
  )
  return Benchmark(source, file)


# Each at one commit, so that a score names its questions; a local copy has the
# hash of its texts for that.
BENCHMARKS = {
  "math500": _hub(
    "math500",
    "HuggingFaceH4/MATH-500",
    "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
    id="unique_id",
    question="problem",
  ),
  "minerva_math": _hub(
    "minerva_math",
    "math-ai/minervamath",
    "ee46ddc498933b1977577953250ca5c66be64f96",
  ),
  "olympiadbench": _hub(
    "olympiadbench_math_en",
    "Hothan/OlympiadBench",
    "91184b52131e7fc9455fef848035173aea8cc01a",
    name="OE_TO_maths_en_COMP",
    split="train",
    answer="final_answer",
  ),
  "aime24": _hub(
    "aime24",
    "HuggingFaceH4/aime_2024",
    "2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
    split="train",
    question="problem",
  ),
  "aime25": _hub(
    "aime25",
    "math-ai/aime25",
    "563bb8404243c5f09de6ec262f2db674fe5bce9b",
    question="problem",
  ),
  "amc23": _hub(
    "amc23_40", "math-ai/amc23", "80815d37005feb82cd7f8fbc6901d5d3eff43057"
  ),
  "gsm8k": _hub(
    "gsm8k_test",
    "openai/gsm8k",
    "740312add88f781978c0658806c59bc2815b9866",
    name="main",
    solution="answer",
  ),
}
# The paper's average is the plain mean of these five.
FIVE = ("math500", "minerva_math", "olympiadbench", "aime24", "amc23")


def load_questions(
  name: str, directory: pathlib.Path | None, limit: int | None = None
) -> list[types.Question]:
  """Returns the questions of a benchmark.

  Args:
    directory: of local copies; None: the hub.
    limit: the first of them alone.

  Raises:
    ConfigError: an unknown name, or nothing there.
  """
  if name not in BENCHMARKS:
    raise errors.ConfigError(
      f"--benchmarks takes {', '.join(BENCHMARKS)}, got {name!r}"
    )
  source, file = BENCHMARKS[name]
  if directory is None:
    return corpora.load(source)[:limit]
  paths = [directory / f"{file}{end}" for end in (".jsonl", ".jsonl.gz")]
  found = [path for path in paths if path.is_file()]
  if not found:
    raise errors.ConfigError(
      f"--data must have {file}.jsonl or {file}.jsonl.gz for {name}, got "
      f"{directory}"
    )
  return corpora.load(config.Source(path=str(found[0])))[:limit]
