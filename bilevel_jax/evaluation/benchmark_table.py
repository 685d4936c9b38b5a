"""The benchmarks that are known by name: where each comes from, pinned."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from bilevel_jax import config, errors, types
from bilevel_jax.data import corpora


class Benchmark(NamedTuple):
  """A set of questions."""

  source: config.Source  # on the hub
  file: str  # of a local copy with our own names, without .jsonl or .jsonl.gz


def _hub(
  hub: str,
  *,
  name: str | None = None,
  split: str = "test",
  revision: str,
  fields: Mapping[str, str],
) -> config.Source:
  return config.Source(
    hub=hub, name=name, split=split, revision=revision, fields=dict(fields)
  )


# Each at one commit, so that a score names its questions; a local copy has the
# hash of its texts for that.
BENCHMARKS: dict[str, Benchmark] = {
  "math500": Benchmark(
    _hub(
      "HuggingFaceH4/MATH-500",
      revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
      fields={"id": "unique_id", "question": "problem"},
    ),
    "math500",
  ),
  "minerva_math": Benchmark(
    _hub(
      "math-ai/minervamath",
      revision="ee46ddc498933b1977577953250ca5c66be64f96",
      fields={},
    ),
    "minerva_math",
  ),
  "olympiadbench": Benchmark(
    _hub(
      "Hothan/OlympiadBench",
      name="OE_TO_maths_en_COMP",
      split="train",
      revision="91184b52131e7fc9455fef848035173aea8cc01a",
      fields={"answer": "final_answer"},
    ),
    "olympiadbench_math_en",
  ),
  "aime24": Benchmark(
    _hub(
      "HuggingFaceH4/aime_2024",
      split="train",
      revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
      fields={"question": "problem"},
    ),
    "aime24",
  ),
  "aime25": Benchmark(
    _hub(
      "math-ai/aime25",
      revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
      fields={"question": "problem"},
    ),
    "aime25",
  ),
  "amc23": Benchmark(
    _hub(
      "math-ai/amc23",
      revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
      fields={},
    ),
    "amc23_40",
  ),
  "gsm8k": Benchmark(
    _hub(
      "openai/gsm8k",
      name="main",
      revision="740312add88f781978c0658806c59bc2815b9866",
      fields={"solution": "answer"},
    ),
    "gsm8k_test",
  ),
}
# The paper's average is the plain mean of these five.
FIVE = ("math500", "minerva_math", "olympiadbench", "aime24", "amc23")


def load(
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
  local = dataclasses.replace(config.Source(), path=str(found[0]))
  return corpora.load(local)[:limit]
