"""Every config file parses, and says what a lab notebook says."""

import collections
import importlib.util
import pathlib

import numpy as np
import pytest

from bilevel_jax import config, errors, methods, train
from bilevel_jax.data import corpora
from bilevel_jax.objectives import weighting
from bilevel_jax.runs import records
from experiments.engine import plan

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
STUDIES = sorted((FOLDER.parent / "experiments/studies").glob("*.py"))
CONFIGS = sorted(FOLDER.glob("*.py"))
METHODS = FOLDER / "methods.py"
SPOILED = FOLDER / "spoiled_demonstrations.py"
PAPERS = FOLDER / "papers.py"


def _module(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_parses_and_is_a_lab_notebook(path):
  module = _module(path)
  for arguments in [(n,) for n in getattr(module, "NAMES", ())] or [()]:
    settings = config.parse(module.get_config(*arguments))
    folder = f"{path.stem}/" * (path in (SPOILED, PAPERS))
    assert settings.run_dir.startswith(
      f"runs/{folder}{(*arguments, path.stem)[0]}"
    )
  for word in (path.stem, "Hardware:", "Expected"):
    assert word in module.__doc__


def test_every_method_has_a_name_and_differs_in_nothing_else():
  module = _module(METHODS)
  assert set(module.NAMES) == {*methods.METHODS, "two_stage"}
  start = _module(FOLDER / "quickstart.py").start().to_dict()
  start = dict(config.flat(start))
  for name in module.NAMES:
    changed = {
      field: value
      for field, value in config.flat(module.get_config(name).to_dict())
      if start[field] != value
    }
    expected = {
      "run_dir": f"runs/{name}",
      "method.name": {"two_stage": "sft_then_rl"}.get(name, name),
    }
    if name == "bridge":
      del expected["method.name"]
    if name == "gta":
      expected["data.solution"] = "guess {answer}:{solution}"
      expected["method.gta.guess_end"] = ":"
    if name == "self_teacher":
      expected["method.self_teacher.prompt"] = "{solution}\n{question}"
    assert changed == expected


SAMPLES, SOLUTIONS = np.array([3, 5, 2, 7]), np.array([4, 6])
ROWS, TOKENS = len(SAMPLES), SAMPLES.sum()
_ALIKE = 1 / (ROWS + len(SOLUTIONS))  # times 1 / the longest completion
# Name -> the weight of a token of each sample, and of each solution, of the
# paper; {L}: the longest completion that there may be.
PAPERS_WEIGHTS = {
  "grpo": lambda L: (1 / ROWS / SAMPLES, None),
  "bridge": lambda L: (1 / ROWS / SAMPLES, 1 / SOLUTIONS.sum()),
  "hpt": lambda L: (1 / ROWS / L, 1 / SOLUTIONS.sum()),
  "luffy": lambda L: (_ALIKE / L, _ALIKE / L),
  "srft": lambda L: (_ALIKE / L, _ALIKE / L),
  "trapo": lambda L: (1 / ROWS / L, None),
  "chord": lambda L: (1 / TOKENS, 1 / SOLUTIONS.sum()),
  "relift": lambda L: (1 / TOKENS, 1 / SOLUTIONS.sum()),
}


@pytest.mark.parametrize("name", _module(PAPERS).NAMES)
def test_the_papers_settings_give_a_token_the_papers_weight(name):
  c = config.parse(_module(PAPERS).get_config(name))
  longest = c.rollout.max_new_tokens
  rl = weighting.build(c.rl.weighting, longest)
  sft = weighting.build(c.sft.weighting, c.data.max_demonstration_tokens)
  mask = lambda lengths: (np.arange(9) < lengths[:, None]).astype(np.float32)
  of_samples, of_solutions = rl(mask(SAMPLES)), sft(mask(SOLUTIONS))
  if name in ("luffy", "srft"):  # `luffy.as_members`
    factors = weighting.as_one_batch(SAMPLES, SOLUTIONS, rl=rl, sft=sft)
    of_samples, of_solutions = (
      weights * factor
      for weights, factor in zip(
        (of_samples, of_solutions), factors, strict=True
      )
    )
  samples, solutions = PAPERS_WEIGHTS[name](longest)
  np.testing.assert_allclose(of_samples[:, 0], np.full(ROWS, 1) * samples, 1e-5)
  if solutions is not None:
    np.testing.assert_allclose(of_solutions[:, 0], solutions, rtol=1e-5)


def test_the_page_of_methods_says_what_to_look_at_for_each():
  page = (FOLDER.parent / "docs" / "methods.md").read_text()
  rows = page.split("## What to look at")[1].split("\n## ")[0].splitlines()
  named = " ".join(row.split("|")[1] for row in rows if row.startswith("|"))
  for name in _module(METHODS).NAMES:
    assert f"`{name}`" in named, name


@pytest.mark.parametrize("name", _module(METHODS).NAMES)
def test_every_method_runs(name, tmp_path, monkeypatch):
  c = _module(METHODS).get_config(name)
  c.run_dir = str(tmp_path / "run")
  c.steps = 2  # of two stages, one each
  c.data.questions.count = 8
  c.data.demonstration_share = 1.0
  c.data.evaluation.count = 1
  c.data.prompts_per_step = 1
  c.data.demonstrations_per_step = 2
  c.rollout.max_new_tokens = 8
  c.checkpoints.every = None
  c.checkpoints.export = False
  c.mesh.fsdp = 1
  # Its charts take as long as an update.
  monkeypatch.setattr(
    train.run_report, "write_report", lambda *unused: tmp_path
  )
  done = train.run(config.parse(c))
  assert done.number == 2
  assert done.metrics["training/skipped_updates"] == 0


@pytest.mark.parametrize("seed", range(1, 6))
def test_48_of_64_demonstrations_are_spoiled_other_ones_for_each_seed(seed):
  found = {}
  for name in _module(SPOILED).NAMES:
    c = _module(SPOILED).get_config(name)
    c.seed, c.method.name = seed, "mixed"
    settings = config.parse(c)
    found[name] = corpora.load(settings.data.demonstrations)
    assert settings.run_dir.endswith(f"/{name}-mixed-{seed}")
    assert settings.data.demonstrations.first == 64 * seed
    assert len(corpora.load(settings.data.evaluation)) == 500
  kinds = {
    name: collections.Counter(q.meta["kind"] for q in questions)
    for name, questions in found.items()
  }
  assert kinds == {
    "guesses": {"guess": 48, "worked": 16},
    "slips": {"slip": 48, "worked": 16},
    "clean": {"worked": 64},
  }
  asked = [[q.question for q in found[name]] for name in ("guesses", "slips")]
  assert asked[0] == asked[1]


def test_an_unknown_kind_of_spoiled_demonstrations_is_refused():
  with pytest.raises(errors.ConfigError, match="guesses, slips, clean, got 's"):
    _module(SPOILED).get_config("slip")


def test_spoiled_demonstrations_run_from_the_policy_of_the_package(tmp_path):
  c = _module(SPOILED).get_config("slips")
  c.run_dir = str(tmp_path / "run")
  c.seed, c.steps = 1, 1
  c.data.questions.count = 8
  c.data.evaluation.count = 20
  c.checkpoints.export = False
  c.mesh.fsdp = 1
  train.run(config.parse(c))
  read = lambda name: records.read_records(tmp_path / "run" / name)
  rows = read("demonstrations.jsonl")
  assert collections.Counter(row["group"] for row in rows) == {
    "slip": 48,
    "worked": 16,
  }
  assert read("metrics.jsonl")[-1]["evaluation/accuracy"] < 0.2


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
