"""The house rules that a reader relies on, as tests."""

import ast
import pathlib

import pytest

from bilevel_jax import methods

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "bilevel_jax"
RANKS = {
  "config": 0,
  "types": 0,
  "compile_cache": 0,
  "processes": 1,
  "models": 1,
  "data": 1,
  "rewards": 1,
  "objectives": 1,
  "rollout": 2,
  "loading": 2,
  "bilevel": 2,
  "methods": 3,
  "training": 4,
  "evaluation": 4,
  "train": 5,
  "comparison": 5,
  "study": 6,
  "notebook": 6,
  "main": 7,
  "generate": 7,
  "evaluate": 7,
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def _room(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(path: pathlib.Path) -> list[str]:
  names = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names += [f"{node.module}.{alias.name}" for alias in node.names]
  return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_arrows_point_downward(path):
  room = _room(path)
  if room == "__init__":
    return
  assert room in RANKS, f"give {room} a rank"
  for name in _imports(path):
    parts = name.split(".")
    if parts[0] != "bilevel_jax" or len(parts) < 2 or parts[1] == room:
      continue
    assert RANKS[parts[1]] < RANKS[room], f"{room} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_rooms_are_small_and_named(path):
  assert len(path.read_text().splitlines()) <= 400
  assert path.stem not in ("utils", "helpers", "common", "misc")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_flax_stays_in_models(path):
  if _room(path) != "models":
    assert not [n for n in _imports(path) if n.split(".")[0] == "flax"]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_heavy_packages_are_imported_where_they_are_used(path):
  heavy = {"datasets", "pyarrow", "scipy", "torch", "wandb", "tensorboardX"}
  tree = ast.parse(path.read_text())
  top = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
  for node in top:
    names = (
      [a.name for a in node.names]
      if isinstance(node, ast.Import)
      else [node.module or ""]
    )
    assert not heavy & {n.split(".")[0] for n in names}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_a_method_is_named_in_its_own_module_and_in_the_settings_alone(path):
  """Everything else reads the contract: there is no `if name ==`."""
  if _room(path) in ("methods", "config"):
    return
  for node in ast.walk(ast.parse(path.read_text())):
    named = []
    if isinstance(node, ast.Constant):
      named = [node.value]
    elif isinstance(node, ast.Attribute) and "method" in ast.dump(node.value):
      named = [node.attr]  # a section of its settings
    elif isinstance(node, ast.ImportFrom):
      named = [a.name for a in node.names if "methods" in str(node.module)]
    assert methods.METHODS.keys().isdisjoint(named), f"line {node.lineno}"
