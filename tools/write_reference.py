"""Writes docs/reference/settings.md and command_line.md from the code.

  python tools/write_reference.py

tests/tools/test_write_reference.py fails where the pages are not what this
writes.
"""

import ast
import dataclasses
import pathlib
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bilevel_jax import config, fields, methods

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reference"
PROGRAMS = (
  "bilevel_jax/console.py",
  "bilevel_jax/main.py",
  "bilevel_jax/evaluate.py",
  "bilevel_jax/generate.py",
  "bilevel_jax/rank.py",
  "bilevel_jax/difficulty.py",
  "bilevel_jax/score.py",
  "tools/plan_memory.py",
  "tools/compare_runs.py",
  "tools/convert_weights.py",
  "tools/fetch_smollm2.py",
  "tools/draw_run.py",
  "tools/make_arithmetic_policy.py",
  "tools/write_reference.py",
  "experiments/study.py",
  "experiments/spoiled_demonstrations.py",
  "benchmarks/rollout.py",
  "benchmarks/step.py",
  "benchmarks/hypergradients.py",
  "benchmarks/hypergradient_peers.py",
  "benchmarks/grader.py",
  "benchmarks/sandbox.py",
)
_RULES = {"at_least": ">=", "above": ">", "at_most": "<=", "below": "<"}
_KINDS = {
  bool: "true or false",
  int: "integer",
  float: "number",
  str: "text",
  dict: "group",
}


def main() -> int:
  """Writes the pages; returns the exit code, 0."""
  PAGES.mkdir(exist_ok=True)
  (PAGES / "settings.md").write_text(settings())
  (PAGES / "command_line.md").write_text(command_line())
  return 0


def settings() -> str:
  """Returns the page of every field of the schema, in Markdown."""
  lines = [
    "# Settings",
    "",
    "Every field that a config file or `--config.FIELD=VALUE` can set. This "
    "page is written by `tools/write_reference.py` from the dataclasses that "
    "`bilevel_jax/config/schema.py` puts together, those of each method's file "
    "in `bilevel_jax/methods` among them; no line of it was typed.",
    "",
    "On the command line a value has Python's spelling: "
    "`--config.steps=20`, `--config.resume=True`, "
    "`--config.rl.importance_cap=None`, "
    "`--config.reward.verifiers=\"('exact',)\"`. A *group* takes keys of your "
    "own: `--config.data.questions.fields.question=problem`; those of "
    "`method.options` are declared by the method's file "
    "(`docs/how_to/own_method.md`). A field that is misspelt, of another type "
    "or out of its bounds is refused before anything is computed, in one "
    "sentence.",
    "",
  ]
  lines += _group(config.Config, "", "The run", "what all else belongs to")
  return "\n".join(lines).rstrip() + "\n"


def command_line() -> str:
  """Returns the page of what every program says of itself, in Markdown."""
  lines = [
    "# Command line",
    "",
    "What each program says of itself; `--help` lists its flags. This page is "
    "written by `tools/write_reference.py`. Programs of `bilevel_jax` come "
    "with the package, all others with a clone of the repository.",
  ]
  for path in PROGRAMS:
    said = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    name = f"python {path}"
    if path.startswith("bilevel_jax/"):
      name = f"python -m {path.removesuffix('.py').replace('/', '.')}"
    lines += ["", f"## `{name}`", "", "```text", said, "```"]
  return "\n".join(lines) + "\n"


def _group(cls: Any, prefix: str, title: str, doc: str) -> Iterator[str]:
  hints = typing.get_type_hints(cls)
  own = [
    f
    for f in dataclasses.fields(cls)
    if not dataclasses.is_dataclass(hints[f.name])
  ]
  yield from (f"## {title}", "", f"{doc[:1].upper()}{doc[1:]}.", "")
  if own:
    yield from ("| field | type | default | meaning |", "|---|---|---|---|")
    for field in own:
      cells = (
        f"`{prefix}{field.name}`",
        _kind(hints[field.name], field.metadata["rules"]),
        _default(field),
        field.metadata["doc"],
      )
      escaped = (cell.replace("|", r"\|") for cell in cells)
      yield f"| {' | '.join(escaped)} |"
    yield ""
  for field in dataclasses.fields(cls):
    if dataclasses.is_dataclass(hints[field.name]):
      inner = prefix + field.name
      yield from _group(
        hints[field.name], f"{inner}.", f"`{inner}`", _about(prefix, field)
      )


def _about(prefix: str, field: dataclasses.Field) -> str:
  """Returns what a section is: of a method, what its file says first."""
  if prefix == "method." and field.name in methods.METHODS:
    said = methods.METHODS[field.name].__doc__ or ""
    return " ".join(said.split("\n\n")[0].split()).rstrip(".")
  return field.metadata["doc"]


def _kind(hint: Any, rules: dict[str, float]) -> str:
  optional = ""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    hint = next(h for h in typing.get_args(hint) if h is not type(None))
    optional = " or None"
  origin = typing.get_origin(hint) or hint
  if origin is Literal:
    return ", ".join(f"`{x}`" for x in typing.get_args(hint)) + optional
  if origin is tuple:
    kind = f"list of {_KINDS[typing.get_args(hint)[0]]}s".replace(
      "texts", "text"
    )
  else:
    kind = _KINDS[origin]
  bounds = ", ".join(
    f"{_RULES[rule]} {fields.bound_text(bound)}"
    for rule, bound in rules.items()
  )
  return kind + (f" {bounds}" if bounds else "") + optional


def _default(field: dataclasses.Field) -> str:
  if field.default is dataclasses.MISSING:
    return "empty"
  if field.default is None or field.default == ():
    return "None" if field.default is None else "empty"
  if isinstance(field.default, tuple):
    return ", ".join(f"`{x}`" for x in field.default)
  return f"`{field.default!r}`" if field.default != "" else "empty"


if __name__ == "__main__":
  sys.exit(main())
