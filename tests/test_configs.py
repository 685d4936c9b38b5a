"""Every config file parses, and says what a lab notebook says."""

import importlib.util
import pathlib

import pytest

from bilevel_jax import config
from bilevel_jax.study import plan

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
STUDIES = sorted((FOLDER / "studies").glob("*.py"))
CONFIGS = sorted(FOLDER.glob("*.py"))


def _module(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_parses_and_is_a_lab_notebook(path):
  module = _module(path)
  settings = config.parse(module.get_config())
  assert settings.run_dir == f"runs/{path.stem}"
  for word in (path.stem, "Hardware:", "Expected"):
    assert word in module.__doc__


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_run_of_a_study_parses(path, quick):
  module = _module(path)
  study = module.get_study(quick=quick)
  for name, regime in study.regimes.items():
    chosen = {arm: given.search[0] for arm, given in regime.arms.items()}
    searches = plan.tuning(study, name, chosen)
    final = plan.final(study, name, chosen)
    assert study.reference in final
    jobs = [
      *plan.stages(study, regime),
      *(job for jobs in searches.values() for job in jobs),
      *(job for seeds in final.values() for job in seeds.values()),
    ]
    assert len({job.path for job in jobs}) == len(jobs)
    for job in jobs:
      config.parse(job.settings)
    # The seed that chose a learning rate is not one of those reported.
    for arm in regime.arms.values():
      assert study.tuning_seed not in study.seeds(arm)
      assert arm.tuned_as is None or arm.tuned_as in searches
  for word in (path.stem, "Hardware:", "Expected"):
    assert word in module.__doc__
