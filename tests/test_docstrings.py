"""Every public name says what it is, in one form."""

import ast
import pathlib
import re

PACKAGE = pathlib.Path(__file__).parents[1] / "bilevel_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
# What a reader must know of all arguments of a function.
OF_ARRAYS = (
  "bilevel",
  "methods",
  "models",
  "objectives",
  "rollout",
  "weights",
)
ARRAY = re.compile(r"\b(Array|ndarray)\b")
SHAPE = re.compile(r"\[.*?\]|scalar|PRNG key|as in|as for", re.DOTALL)


def _is_public(node: ast.AST) -> bool:
  return not getattr(node, "name", "_").startswith("_")


def _fields(node: ast.ClassDef) -> list[ast.expr | None]:
  return [n.value for n in node.body if isinstance(n, ast.AnnAssign)]


def _is_of_settings(node: ast.ClassDef) -> bool:
  """Whether each field says its meaning: `setting(default, meaning)`."""
  made = {
    value.func.id
    for value in _fields(node)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name)
  }
  return bool(made) and made <= {"setting", "section"}


def _functions(tree: ast.Module) -> list[ast.FunctionDef]:
  classes = [n for n in tree.body if isinstance(n, ast.ClassDef)]
  bodies = [tree, *filter(_is_public, classes)]
  return [
    node
    for body in bodies
    for node in body.body
    if isinstance(node, ast.FunctionDef) and _is_public(node)
  ]


def _sections(docstring: str) -> dict[str, str]:
  parts = re.split(r"\n(Args|Returns|Raises|Yields):\n", docstring)
  return dict(zip(parts[1::2], parts[2::2], strict=True))


def _arguments(node: ast.FunctionDef) -> dict[str, str]:
  """Returns the annotation of each argument, as text."""
  args = node.args
  found = [*args.posonlyargs, *args.args]
  found += [a for a in (args.vararg, *args.kwonlyargs, args.kwarg) if a]
  return {
    a.arg: ast.unparse(a.annotation) if a.annotation else ""
    for a in found
    if a.arg not in ("self", "cls")
  }


def _described(section: str) -> dict[str, str]:
  parts = re.split(r"^ {2}\**(\w+):", section, flags=re.MULTILINE)
  return dict(zip(parts[1::2], parts[2::2], strict=True))


def _says_nothing(entry: str) -> bool:
  return len(entry.split()) <= 4 and not SHAPE.search(entry)


def _raised(node: ast.AST) -> set[str]:
  """Returns the exceptions that a function raises itself, by name."""
  names = set()
  for child in ast.iter_child_nodes(node):
    if isinstance(child, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
      continue
    if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
      name = ast.unparse(child.exc.func).split(".")[-1]
      names |= {name} if name[0].isupper() else set()
    names |= _raised(child)
  return names


def _complaints(tree: ast.Module, of_arrays: bool) -> list[str]:
  """Returns what is wrong with a module's docstrings, a line for each."""
  wrong = []
  if tree.body and not ast.get_docstring(tree):
    wrong.append("the module has no docstring")
  for node in tree.body:
    silent = isinstance(node, ast.ClassDef) and not ast.get_docstring(node)
    if silent and _is_public(node) and not _is_of_settings(node):
      wrong.append(f"{node.lineno} {node.name} has no docstring")
  for node in _functions(tree):
    name = f"{node.lineno} {node.name}"
    docstring = ast.get_docstring(node)
    if not docstring:
      wrong.append(f"{name} has no docstring")
      continue
    if docstring.split("\n\n")[0][-1] not in ".:":
      wrong.append(f"{name}: the first sentence does not end")
    if docstring.startswith("See `"):  # what it implements says it
      continue
    sections, arguments = _sections(docstring), _arguments(node)
    described = _described(sections.get("Args", ""))
    arrays = [a for a, kind in arguments.items() if ARRAY.search(kind)]
    known = [name for name in arguments if name in described]
    if list(described) != known:
      wrong.append(f"{name}: Args has {list(described)}, not {list(arguments)}")
    for argument, said in described.items():
      if argument not in arrays and _says_nothing(said):
        wrong.append(f"{name}: of {argument} nothing is said")
    for argument in arrays if of_arrays else ():
      if not SHAPE.search(described.get(argument, "")):
        wrong.append(f"{name}: no shape of {argument}")
    for error in _raised(node):
      if error not in docstring:
        wrong.append(f"{name} raises {error} and does not say so")
  return wrong


def test_every_public_name_says_what_it_is():
  wrong = {}
  for path in MODULES:
    package, *_ = path.relative_to(PACKAGE).parts
    found = _complaints(ast.parse(path.read_text()), package in OF_ARRAYS)
    if found:
      wrong[str(path.relative_to(PACKAGE))] = found
  assert not wrong


def test_formulas_have_a_source():
  for package in ("objectives", "bilevel"):
    for path in PACKAGE.glob(f"{package}/[!_]*.py"):
      source = re.search(r"\d{4}\.\d{5}|Source:|Ours:", path.read_text())
      assert source, path


def test_a_bad_docstring_is_found():
  code = '''
"""A module."""

class Thing:
  x: int = 3

def loss(logprobs: Array, weights: Array):
  """Returns the loss

  Args:
    logprobs: of tokens.
    masks: [B, T].
  """
  raise ValueError("never")

def other(x: Array):
  """Returns x."""

def third(a, b, c):
  """Returns a.

  Args:
    b: of the run.
  """
'''
  assert _complaints(ast.parse(code), of_arrays=True) == [
    "4 Thing has no docstring",
    "7 loss: the first sentence does not end",
    "7 loss: Args has ['logprobs', 'masks'], not ['logprobs', 'weights']",
    "7 loss: no shape of logprobs",
    "7 loss: no shape of weights",
    "7 loss raises ValueError and does not say so",
    "16 other: no shape of x",
    "19 third: of b nothing is said",
  ]
