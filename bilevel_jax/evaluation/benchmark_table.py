"""The benchmarks that are known by name: where each comes from, pinned."""

import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bilevel_jax import config, errors, types
from bilevel_jax.data import corpora
from bilevel_jax.evaluation import benchmark_prompts


class Benchmark(NamedTuple):
  """A set of questions."""

  source: config.Source  # on the hub
  file: str  # of a local copy with our own names, without .jsonl or .jsonl.gz
  verifier: str | None = None
  """What alone says whether an answer to it is right; None: any may."""
  prompt: str | None = None
  """The user's turn where no other is asked for; None: as for mathematics."""
  posed: Callable[[types.Question], types.Question] | None = None
  """Makes the question that is asked of a row."""
  files: tuple[str, ...] = ()
  """JSONL files on the hub, of a data set that no loader reads."""
  dated: str | None = None
  """Field with the day on which a question was published."""


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
  "humaneval": _hub(
    "humaneval",
    "openai/openai_humaneval",
    "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
    id="task_id",
    question="prompt",
  )._replace(verifier="code", prompt=benchmark_prompts.HUMANEVAL),
  "mbpp": _hub(
    "mbpp_test",
    "google-research-datasets/mbpp",
    "4bb6404fdc6cacfda99d4ac4205087b89d32030c",
    name="full",
    id="task_id",
    question="text",
  )._replace(
    verifier="code",
    prompt=benchmark_prompts.PROGRAM,
    posed=benchmark_prompts.with_asserts,
  ),
  "livecodebench": _hub(
    "livecodebench",
    "livecodebench/code_generation_lite",
    "0fe84c3912ea0c4d4a78037083943e8f0c4dd505",
    id="question_id",
    question="question_content",
  )._replace(
    verifier="code",
    prompt=benchmark_prompts.PROGRAM,
    posed=benchmark_prompts.of_contest,
    files=("test.jsonl", *(f"test{n}.jsonl" for n in range(2, 7))),
    dated="contest_date",
  ),
  "gpqa_diamond": _hub(
    "gpqa_diamond",
    "Idavidrein/gpqa",
    "633f5ee89ab8ad4522a9f850766b73f62147ffdd",
    name="gpqa_diamond",
    split="train",
    id="Record ID",
    question="Question",
    answer="Correct Answer",
  )._replace(
    verifier="choice",
    prompt=benchmark_prompts.CHOICE,
    posed=benchmark_prompts.with_choices,
  ),
}
# The paper's average is the plain mean of these five.
FIVE = ("math500", "minerva_math", "olympiadbench", "aime24", "amc23")


def days(text: str | None) -> tuple[str, str] | None:
  """Returns the first and the last day of a text FIRST..LAST.

  Raises:
    ConfigError: it is none.
  """
  if text is None:
    return None
  found = re.fullmatch(r"(\d{4}-\d\d-\d\d)\.\.(\d{4}-\d\d-\d\d)", text)
  if found is None or found[1] > found[2]:
    raise errors.ConfigError(
      "--days takes the first and the last day, as 2024-08-01..2025-01-31, got "
      f"{text!r}"
    )
  return found[1], found[2]


def load_questions(
  name: str,
  directory: pathlib.Path | None,
  limit: int | None = None,
  within: tuple[str, str] | None = None,
) -> list[types.Question]:
  """Returns the questions of a benchmark, as they are asked.

  Args:
    directory: of local copies; None: the hub.
    limit: the first of them alone.
    within: first and last day, as 2024-08-01, of those that have a date.

  Raises:
    ConfigError: an unknown name, or nothing there.
  """
  if name not in BENCHMARKS:
    raise errors.ConfigError(
      f"--benchmarks takes {', '.join(BENCHMARKS)}, got {name!r}"
    )
  benchmark = BENCHMARKS[name]
  readers = () if benchmark.verifier == "code" else ("--benchmarks",)
  found = [
    question
    for source in _sources(name, directory)
    for question in corpora.load(source, readers)
  ]
  if within is not None and (field := benchmark.dated) is not None:
    first, last = within
    found = [q for q in found if first <= str(q.meta[field])[:10] <= last]
    if not found:
      raise errors.ConfigError(
        f"--days {first}..{last} must have questions of {name}, got none"
      )
  posed = benchmark.posed or (lambda question: question)
  return [posed(question) for question in found[:limit]]


def _sources(name: str, directory: pathlib.Path | None) -> list[config.Source]:
  benchmark = BENCHMARKS[name]
  source, file = benchmark.source, benchmark.file
  if directory is None and not benchmark.files:
    return [source]
  if directory is None:
    import huggingface_hub

    paths = [
      huggingface_hub.hf_hub_download(
        str(source.hub), n, repo_type="dataset", revision=source.revision
      )
      for n in benchmark.files
    ]
    return [config.Source(path=path, fields=source.fields) for path in paths]
  paths = [directory / f"{file}{end}" for end in (".jsonl", ".jsonl.gz")]
  found = [path for path in paths if path.is_file()]
  if not found:
    raise errors.ConfigError(
      f"--data must have {file}.jsonl or {file}.jsonl.gz for {name}, got "
      f"{directory}"
    )
  return [config.Source(path=str(found[0]))]


def identity(
  name: str,
  directory: pathlib.Path | None,
  questions: Sequence[types.Question],
  prompts: Sequence[str],
) -> dict[str, Any]:
  """Returns what says which questions were asked, and how: JSON.

  Args:
    prompts: the text that each question became.
  """
  benchmark = BENCHMARKS[name]
  asked = [[q.question, q.answer] for q in questions]
  if benchmark.verifier == "code":
    asked = [[q.question, repr(q.meta)] for q in questions]
  hub = directory is None
  return {
    "from": benchmark.source.hub if hub else str(directory),
    "revision": benchmark.source.revision if hub else None,
    "questions": len(questions),
    "sha256": _hash(asked),
    "prompts": _hash([*prompts]),
  }


def _hash(value: Any) -> str:
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()
