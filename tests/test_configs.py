"""Every config file parses, and says what a lab notebook says."""

import importlib.util
import pathlib

import pytest

from bilevel_jax import config

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").rglob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_parses_and_is_a_lab_notebook(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  settings = config.parse(module.get_config())
  assert settings.run_dir == f"runs/{path.stem}"
  for word in (path.stem, "Hardware:", "Expected"):
    assert word in module.__doc__
