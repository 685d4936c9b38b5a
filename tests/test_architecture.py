"""Rules of the code that a reader relies on, as tests."""

import ast
import collections
import pathlib

from bilevel_jax import methods

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "bilevel_jax"
RANKS = {
  "errors": 0,
  "fields": 0,
  "types": 0,
  "checksums": 0,
  "compile_cache": 0,
  "random_streams": 0,
  "limited_process": 0,
  "own_code": 1,
  "processes": 1,
  "command_line": 1,
  "models": 2,
  "data": 2,
  "rewards": 2,
  "objectives": 2,
  "rollout": 3,
  "weights": 3,
  "bilevel": 3,
  "methods": 4,
  "config": 5,
  "runs": 6,
  "training": 7,
  "evaluation": 7,
  "reporting": 8,
  "train": 9,
  "main": 10,
  "generate": 10,
  "evaluate": 10,
  "score": 10,
  "rank": 11,
  "console": 12,
  "difficulty": 11,
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def _package(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(path: pathlib.Path) -> list[str]:
  names = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names += [f"{node.module}.{alias.name}" for alias in node.names]
  return names


def test_arrows_point_downward():
  for path in MODULES:
    own = _package(path)
    if own == "__init__":
      continue
    assert own in RANKS, f"give {own} a rank"
    for name in _imports(path):
      parts = name.split(".")
      if parts[0] != "bilevel_jax" or len(parts) < 2 or parts[1] == own:
        continue
      assert RANKS[parts[1]] < RANKS[own], f"{path} imports {name}"


def test_modules_are_small_and_named():
  for path in MODULES:
    assert len(path.read_text().splitlines()) <= 400, path
    assert path.stem not in ("utils", "helpers", "common", "misc")


def test_flax_stays_in_models():
  for path in MODULES:
    if _package(path) != "models":
      assert not [n for n in _imports(path) if n.split(".")[0] == "flax"], path


def test_heavy_packages_are_imported_where_they_are_used():
  heavy = {"datasets", "pyarrow", "scipy", "torch", "wandb", "tensorboardX"}
  for path in MODULES:
    for node in ast.parse(path.read_text()).body:
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
      assert not heavy & {n.split(".")[0] for n in names}, path


def test_a_method_is_named_in_methods_alone():
  """Everything else reads the contract: there is no `if name ==`."""
  for path in MODULES:
    if _package(path) == "methods":
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      named = []
      if isinstance(node, ast.Constant):
        named = [node.value]
      elif isinstance(node, ast.Attribute) and "method" in ast.dump(node.value):
        named = [node.attr]  # a section of its settings
      elif isinstance(node, ast.ImportFrom):
        named = [a.name for a in node.names if "methods" in str(node.module)]
      where = f"{path}, line {node.lineno}" if named else ""
      assert methods.METHODS.keys().isdisjoint(named), where


def test_a_name_is_defined_in_two_modules_at_most():
  defined = collections.defaultdict(set)
  for path in MODULES:
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        defined[node.name].add(path)
  shared = {"build", "Options", "rules", "main"}
  for name, paths in defined.items():
    if not name.startswith("_") and name not in shared:
      assert len(paths) <= 2, (name, paths)


def test_families_are_known_by_one_table():
  for path in MODULES:
    if path.stem not in ("families", "presets"):
      assert '"qwen2"' not in path.read_text(), path
