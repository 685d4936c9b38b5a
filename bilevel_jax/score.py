"""Scores completions of a file, as a reward or an evaluation would.

  python -m bilevel_jax.score --verifier code --data completions.jsonl

A line of the file is a question (a data file's fields; programs have `tests`,
docs/code_rewards.md) with a `completion`, or `completions`, a list of them. For
each completion a line of JSON is printed: the question's id, `reward`, and
where it could not be scored `failure`, why. The last line, on standard error,
is how many are right.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from bilevel_jax import command_line, config, errors, types
from bilevel_jax.data import corpora
from bilevel_jax.rewards import pool

_BOUNDS = {
  "deadline_s": {"above": 0},
  "workers": {"at_least": 1, "at_most": 256},
}
_AT_ONCE = 20  # failures are kept for that many
_SPARE_S = 5.0  # of a scoring process, beside what programs may take


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code of `command_line.exit_code`."""
  parser = command_line.Parser("python -m bilevel_jax.score", __doc__)
  add = parser.add
  add("--verifier", "what says whether it is right", required=True)
  add("--data", "JSONL file of completions", required=True, metavar="FILE")
  add("--isolation", "of programs, as sandbox.isolation", default="auto")
  add("--score", "of programs, as sandbox.score", default="all")
  add("--deadline-s", "seconds that one completion may take", float, 10.0)
  add("--workers", "scoring processes", int, 2)
  options = parser.parse_args(arguments)
  return command_line.exit_code(lambda: _score(options))


def _score(options: argparse.Namespace) -> None:
  command_line.check_bounds(options, _BOUNDS)
  sandbox = config.parse(
    {
      "model": {"preset": "qwen2.5-0.5b"},
      "data": {"questions": {"path": options.data}},
      "sandbox": {
        "isolation": options.isolation,
        "score": options.score,
        "deadline_s": options.deadline_s,
        "test_s": options.deadline_s,
      },
    }
  ).sandbox
  pairs = [
    (completion, question)
    for question in corpora.load(config.Source(path=options.data))
    for completion in _completions(question)
  ]
  with pool.Scorer(
    {options.verifier: 1.0},
    deadline_s=options.deadline_s + _SPARE_S,
    sandbox=sandbox,
    workers=options.workers,
  ) as scorer:
    scorer.check([question for _, question in pairs])
    if scorer.isolation is not None:
      print(f"programs run in: {scorer.isolation}", file=sys.stderr)
    right = 0
    for start in range(0, len(pairs), _AT_ONCE):
      right += _print_scores(scorer, pairs[start : start + _AT_ONCE])
  print(f"{right} of {len(pairs)} are right", file=sys.stderr)


def _completions(question: types.Question) -> list[str]:
  found: Any = question.meta.get("completions")
  if found is None and "completion" in question.meta:
    found = [question.meta["completion"]]
  if not isinstance(found, list) or not all(isinstance(t, str) for t in found):
    raise errors.ConfigError(
      "--data must have a text `completion`, or a list `completions`, in each "
      f"line: question {question.id} has {', '.join(question.meta) or 'none'}"
    )
  return found


def _print_scores(
  scorer: pool.Scorer, pairs: Sequence[tuple[str, types.Question]]
) -> int:
  """Prints the scores of completions; returns how many are right."""
  texts, questions = zip(*pairs, strict=True)
  scores = scorer.score(texts, questions)
  failures = dict(scorer.take_failures())
  for text, question, reward, scored in zip(
    texts, questions, scores.rewards, scores.scored, strict=True
  ):
    line: dict[str, Any] = {"id": question.id, "reward": float(reward)}
    if not scored:
      line |= {"reward": None, "failure": failures.get(text)}
    print(json.dumps(line))
  return int((scores.correct & scores.scored).sum())


if __name__ == "__main__":
  sys.exit(main())
