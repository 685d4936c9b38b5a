"""The tests of a question, in the forms in which data sets have them."""

import ast
import base64
import builtins
import io
import json
import pickle
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
  from bilevel_jax import types


class Streams(NamedTuple):
  """What a program must write to its standard output for each input."""

  cases: Sequence[tuple[str, str]]


class Calls(NamedTuple):
  """What a function must return for each list of arguments."""

  function: str
  cases: Sequence[tuple[list[Any], list[Any]]]
  """Arguments, and the values of which it must return one."""


class Asserts(NamedTuple):
  """Python text that must raise nothing."""

  setup: str
  statements: Sequence[str]
  entry: str | None
  """Name of the program's own, though it may be a built-in one."""
  before: str = ""
  """What stands before the program: the prompt that it goes on from."""


Tests = Streams | Calls | Asserts


def tests_of(question: "types.Question") -> Tests:
  """Returns the tests of a question.

  They are the field `tests` or, without one, a field of these data sets:
  `input_output` (APPS, TACO), `public_test_cases` and `private_test_cases`
  (LiveCodeBench), `test_list` (MBPP), `test` and `entry_point` (HumanEval), or
  else the answer, as JSON (what verl calls ground truth). Their forms: a
  mapping with `inputs`, `outputs` and perhaps `fn_name`; a list of mappings
  with `input` and `output`, of a function if `fn_name` or LiveCodeBench's
  `metadata` names one; a list of asserts; a text of Python. A text that is
  JSON stands for its value.

  Raises:
    ValueError: there are none, or they have no form that is known.
  """
  meta = question.meta
  if "private_test_cases" in meta:
    found = [
      case
      for name in ("public_test_cases", "private_test_cases")
      for case in _parsed(meta.get(name) or "[]")
    ]
  else:
    names = ("tests", "input_output", "test_list", "test")
    found = next((meta[n] for n in names if meta.get(n)), question.answer)
  found = _parsed(found)
  if isinstance(found, str) and found.strip():
    return _asserts([found], question)
  if isinstance(found, Mapping) and {"inputs", "outputs"} <= set(found):
    name = found.get("fn_name") or meta.get("fn_name")
    pairs = zip(found["inputs"], found["outputs"], strict=True)
    return _cases(list(pairs), name)
  if isinstance(found, list) and found:
    if all(isinstance(case, str) for case in found):
      return _asserts(found, question)
    if all(isinstance(case, Mapping) for case in found):
      return _cases([(c["input"], c["output"]) for c in found], _named(meta))
  raise ValueError(
    f"question {question.id} has no tests of a known form: {found!r:.99}"
  )


def _named(meta: Mapping[str, Any]) -> str | None:
  more = _parsed(meta.get("metadata") or {})
  return meta.get("fn_name") or more.get("func_name")


def _cases(pairs: list[tuple[Any, Any]], function: str | None) -> Tests:
  if not function:
    return Streams([(_joined(given), _joined(out)) for given, out in pairs])
  return Calls(function, [(_arguments(g), _expected(o)) for g, o in pairs])


def _joined(value: Any) -> str:
  return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _arguments(value: Any) -> list[Any]:
  """A list of arguments, or LiveCodeBench's text: one of JSON a line."""
  if isinstance(value, str):
    return [json.loads(line) for line in value.split("\n") if line.strip()]
  return list(value)


def _expected(value: Any) -> list[Any]:
  """The values that count as right: APPS has some in a list of one."""
  if isinstance(value, str):  # as LiveCodeBench has it
    return [json.loads(value)]
  is_one = isinstance(value, list) and len(value) == 1
  return [value, value[0]] if is_one else [value]


def _asserts(texts: Sequence[str], question: "types.Question") -> Asserts:
  meta = question.meta
  setup = [meta.get("test_setup_code") or "", *(meta.get("test_imports") or [])]
  entry = meta.get("entry_point")
  if entry is None:
    return Asserts("\n".join(setup), texts, _builtin_entry(texts))
  # HumanEval: the text defines check(candidate).
  statements = ["check(candidate)"]
  setup += [*texts, f"candidate = {entry}"]
  prompt = meta.get("prompt") or question.question
  before = prompt if _is_python(prompt) else ""
  return Asserts("\n".join(setup), statements, entry, before)


def _is_python(text: str) -> bool:
  try:
    ast.parse(text)
  except (SyntaxError, ValueError):
    return False
  return True


def _builtin_entry(texts: Sequence[str]) -> str | None:
  """Returns the built-in name that asserts ask of the program, if any.

  MBPP has a task whose function is called `sum`: where asserts load no name
  that is not built in, the first one that they call is the program's.
  """
  nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
  loaded = {node.id for node in nodes if isinstance(node, ast.Name)}
  called = [
    node.func.id
    for node in nodes
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
  ]
  own = [name for name in loaded if not hasattr(builtins, name)]
  return called[0] if called and not own else None


def _parsed(value: Any) -> Any:
  """Returns what a text holds that is JSON, or LiveCodeBench's packed one."""
  if not isinstance(value, str):
    return value
  try:
    return json.loads(value)
  except ValueError:
    pass
  try:
    packed = zlib.decompress(base64.b64decode(value, validate=True))
  except (ValueError, zlib.error):
    return value
  return json.loads(_Text(io.BytesIO(packed)).load())


class _Text(pickle.Unpickler):
  """Reads a pickled text, and nothing that is not plain data."""

  def find_class(self, module_name: str, global_name: str, /) -> Any:
    raise ValueError(f"tests name {module_name}.{global_name}")
