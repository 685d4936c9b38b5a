"""Asks transformers what an evaluation asked, and compares every answer.

EVALUATION is the --out of a greedy `python -m bilevel_jax.evaluate` whose
--weights are a Hugging Face directory or hub id. transformers' generate gets
the same prompts and limits, and its texts go to the same grader.

  python -m bilevel_jax.evaluate --weights smollm2 --benchmarks gsm8k \\
    --limit 200 --max-new-tokens 160 --dtype float32 --out results/smollm2
  python benchmarks/compare_with_transformers.py results/smollm2

Its answers go to EVALUATION/transformers/BENCHMARK.jsonl; an interrupted run
goes on from there. Where two texts part, the next token's two greatest logits
say whether rounding can be why.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import rich.box
import rich.console
import rich.table
import torch
import transformers

from bilevel_jax import command_line, config, errors, types
from bilevel_jax.data import json_lines, tokenizer
from bilevel_jax.evaluation import result_files
from bilevel_jax.rewards import pool
from bilevel_jax.weights import huggingface


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, 2 for what the user can mend, 130 interrupted."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("evaluation", type=pathlib.Path, help="directory")
  parser.add_argument(
    "--rows", type=int, default=20, help="prompts at once (default 20)"
  )
  options = parser.parse_args(arguments)

  def work() -> None:
    compared = compare(options.evaluation, options.rows)
    (options.evaluation / "transformers.json").write_text(
      json.dumps(compared, indent=2) + "\n", "utf-8"
    )
    _show(compared)

  return command_line.exit_code(work, "the same command goes on from here")


def compare(evaluation: pathlib.Path, rows: int) -> dict[str, Any]:
  """Returns how the answers of each benchmark agree: JSON.

  Args:
    evaluation: the directory of a greedy evaluation.
    rows: prompts that transformers gets at once.

  Raises:
    ConfigError: no evaluation, or one that was not greedy.
  """
  settings = _settings(evaluation)
  (evaluation / "transformers").mkdir(exist_ok=True)
  compared = {}
  peer = _Peer(settings)
  with pool.Scorer({settings["verifier"]: 1.0}, deadline_s=10.0) as scorer:
    for name in settings["benchmarks"]:
      answered = json_lines.whole(evaluation / "records" / f"{name}.jsonl")
      ours = [record for _, record in answered]
      questions = [
        types.Question(r["id"], r["question"], r["answer"], None, {})
        for r in ours
      ]
      path = evaluation / "transformers" / f"{name}.jsonl"
      theirs = result_files.resume_records(path, questions)
      with path.open("a", encoding="utf-8") as file:
        while len(theirs) < len(questions):
          chosen = questions[len(theirs) : len(theirs) + rows]
          new = peer.answer(chosen, scorer)
          file.write("".join(json.dumps(line) + "\n" for line in new))
          file.flush()
          theirs += new
          print(f"{name}: {len(theirs)} of {len(questions)}", file=sys.stderr)
      compared[name] = _agreement(ours, theirs, peer)
  return compared


def _settings(evaluation: pathlib.Path) -> dict[str, Any]:
  path = evaluation / "settings.json"
  if not path.is_file():
    raise errors.ConfigError(f"{evaluation} has no settings.json")
  settings = json.loads(path.read_text("utf-8"))
  if settings["temperature"] or settings["stop"]:
    raise errors.ConfigError(
      f"{evaluation} must be greedy and without --stop, got temperature "
      f"{settings['temperature']} and stop {settings['stop']}"
    )
  return settings


class _Peer:
  """transformers, with the weights, prompts and limits of an evaluation."""

  def __init__(self, settings: dict[str, Any]):
    export = pathlib.Path(settings["weights"], "export")
    files = (
      export
      if export.is_dir()
      else huggingface.resolve(settings["weights"], settings["revision"])
    )
    words = ("system_prompt", "prompt", "chat_template", "use_chat_template")
    self.tokenizer = tokenizer.of_settings(
      files, config.Tokenizer(**{name: settings[name] for name in words})
    )
    self._budget = settings["max_new_tokens"]
    self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
      files, dtype=getattr(torch, settings["dtype"] or "float32")
    ).eval()
    self._without_token = sorted(
      self.tokenizer.ids_without_token(
        self._model.get_output_embeddings().out_features
      )
    )

  @torch.inference_mode()
  def answer(
    self, questions: Sequence[types.Question], scorer: pool.Scorer
  ) -> list[dict[str, Any]]:
    """Returns a record of each question."""
    prompts = [self.tokenizer.prompt_tokens(q).tolist() for q in questions]
    longest = max(map(len, prompts))
    out = self._model.generate(
      torch.tensor([[0] * (longest - len(p)) + p for p in prompts]),
      attention_mask=torch.tensor(
        [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
      ),
      max_new_tokens=self._budget,
      do_sample=False,
      eos_token_id=list(self.tokenizer.eos_ids),
      pad_token_id=0,
      suppress_tokens=self._without_token or None,
    )[:, longest:].tolist()
    tokens = [self._until_end(row) for row in out]
    texts = [self.tokenizer.decode(row) for row in tokens]
    scores = scorer.score(texts, questions)
    return [
      {
        "question": question.question,
        "correct": bool(correct),
        "tokens": row,
        "completion": text,
      }
      for question, correct, row, text in zip(
        questions, scores.correct, tokens, texts, strict=True
      )
    ]

  def _until_end(self, tokens: list[int]) -> list[int]:
    ends = (n for n, t in enumerate(tokens) if t in self.tokenizer.eos_ids)
    return tokens[: next(ends, len(tokens)) + 1]

  @torch.inference_mode()
  def margin(self, record: dict[str, Any], ours: str) -> tuple[int, float]:
    """Returns where two texts part, and what the choice of a token hung on.

    Args:
      record: one of `answer`.
      ours: the other text.

    Returns:
      The number of the first token that the other text does not begin with,
      and how much greater its logit is than the second greatest.
    """
    tokens = record["tokens"]
    parted = next(
      n
      for n in range(len(tokens) + 1)
      if n == len(tokens)
      or not ours.startswith(self.tokenizer.decode(tokens[: n + 1]))
    )
    question = types.Question("", record["question"], "", None, {})
    prompt = self.tokenizer.prompt_tokens(question).tolist()
    logits = self._model(torch.tensor([prompt + tokens[:parted]])).logits
    logits = logits[0, -1].float()
    logits[self._without_token] = -torch.inf
    first, second = logits.topk(2).values.tolist()
    return parted, first - second


def _agreement(
  ours: Sequence[dict[str, Any]],
  theirs: Sequence[dict[str, Any]],
  peer: _Peer,
) -> dict[str, Any]:
  pairs = list(zip(ours, theirs, strict=True))
  return {
    "questions": len(pairs),
    "correct": sum(o["correct"][0] for o, _ in pairs),
    "correct_by_transformers": sum(t["correct"] for _, t in pairs),
    "graded_alike": sum(o["correct"][0] == t["correct"] for o, t in pairs),
    "same_text": sum(_same(*pair) for pair in pairs),
    "parted": list(_parted(pairs, peer)),
  }


def _same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
  return ours["completions"][0] == theirs["completion"] and ours["tokens"][
    0
  ] == len(theirs["tokens"])


def _parted(
  pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], peer: _Peer
) -> Iterator[dict[str, Any]]:
  for ours, theirs in pairs:
    if not _same(ours, theirs):
      token, margin = peer.margin(theirs, ours["completions"][0])
      yield {
        "id": ours["id"],
        "token": token,
        "margin": margin,
        "graded_alike": ours["correct"][0] == theirs["correct"],
      }


def _show(compared: dict[str, Any]) -> None:
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
  for heading in ("", "questions", "ours", "transformers", "graded alike"):
    table.add_column(heading)
  table.add_column("same text")
  table.add_column("greatest margin where texts part")
  for name, found in compared.items():
    margins = [parted["margin"] for parted in found["parted"]]
    table.add_row(
      name,
      str(found["questions"]),
      str(found["correct"]),
      str(found["correct_by_transformers"]),
      str(found["graded_alike"]),
      str(found["same_text"]),
      f"{max(margins):.2g}" if margins else "they do not",
    )
  console = rich.console.Console(highlight=False)
  if not console.is_terminal:
    console = rich.console.Console(highlight=False, width=160)
  console.print(table)


if __name__ == "__main__":
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
  sys.exit(main())
