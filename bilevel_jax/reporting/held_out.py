"""What became of the held-out questions: the answers before and after."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bilevel_jax.reporting import pages
from bilevel_jax.runs import directory, records

_SHOWN = 5  # of each kind, on the page


class Pair(NamedTuple):
  """Two answers to a question, as answers.jsonl has them."""

  before: Mapping[str, Any]
  after: Mapping[str, Any]


class Changed(NamedTuple):
  """Questions whose answer turned right or wrong, in the file's order."""

  gained: Sequence[Pair]
  lost: Sequence[Pair]

  @property
  def counts(self) -> str:
    """How many there are, in words."""
    return (
      f"wrong before and right after: {len(self.gained)} questions; right "
      f"before and wrong after: {len(self.lost)}"
    )


def changed(run_dir: str | pathlib.Path) -> Changed | None:
  """Returns how the last evaluation's answers differ from the first one's.

  Args:
    run_dir: a run directory; None is returned where it has no two evaluations.
  """
  rows = records.read_records(directory.RunDirectory(run_dir).answers)
  steps = sorted({row["step"] for row in rows})
  if len(steps) < 2:
    return None
  first, last = (
    {row["question_id"]: row for row in rows if row["step"] == step}
    for step in (steps[0], steps[-1])
  )
  pairs = [Pair(first[name], last[name]) for name in first if name in last]
  right = lambda row: bool(row["correct"])
  return Changed(
    [p for p in pairs if right(p.after) and not right(p.before)],
    [p for p in pairs if right(p.before) and not right(p.after)],
  )


def of_run(run_dir: str | pathlib.Path) -> str:
  """Returns the page's section, empty where there are no two evaluations."""
  found = changed(run_dir)
  if found is None:
    return ""
  parts = [pages.paragraph(f"{found.counts}. The first of each:")]
  for kind, good in ((found.gained, True), (found.lost, False)):
    for pair in kind[:_SHOWN]:
      head = "right after" if good else "wrong after"
      parts.append(
        pages.article(
          f"{head} · answer {pair.after['answer']}",
          good,
          pair.after["prompt"],
          f"before: {pair.before['completion']}",
          f"after: {pair.after['completion']}",
        )
      )
  return pages.section("The same questions before and after", "".join(parts))
