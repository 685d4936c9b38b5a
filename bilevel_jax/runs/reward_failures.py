"""The file that says which completions could not be scored, and why."""

import pathlib
import re
import textwrap
from collections.abc import Sequence

from bilevel_jax.rewards import pool
from bilevel_jax.runs import records

# Whatever a reason's text has, its other lines are indented.
_ENTRY = re.compile(r"^step (\d+)", re.MULTILINE)


def render(step: int, failures: Sequence[pool.Failure], during: str) -> str:
  """Returns an entry for each failure, the first line of which has the step.

  Args:
    during: what else was done then, such as `evaluation`; "": the step itself.
  """
  title = f"step {step}, {during}" if during else f"step {step}"
  return "".join(
    f"{title}: "
    + textwrap.indent(
      "\n".join(reason.splitlines()) + f"\ncompletion: {completion!a}\n",
      "  ",
    ).lstrip()
    for completion, reason in failures
  )


def append(path: pathlib.Path, entries: str) -> None:
  """Adds entries to the file, whatever text they have."""
  with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
    file.write(entries)


def drop_after(path: pathlib.Path, step: int) -> None:
  """Drops the entries of later steps; a file without entries goes."""
  if not path.exists():
    return
  text = path.read_text("utf-8", errors="replace")
  later = (m.start() for m in _ENTRY.finditer(text) if int(m[1]) > step)
  if kept := text[: next(later, None)]:
    records.write_atomically(path, kept.removesuffix("\n") + "\n")
  else:
    path.unlink()
