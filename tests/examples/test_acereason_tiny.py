"""The stages of configs/acereason_tiny.py, made short, one after another."""

import importlib.util
import json

import pytest

from bilevel_jax import config, difficulty, train
from tests import processes, tiny_run

PATH = processes.ROOT / "configs" / "acereason_tiny.py"


def _stage(name, tmp_path, monkeypatch, **changes):
  monkeypatch.syspath_prepend(processes.ROOT)
  spec = importlib.util.spec_from_file_location("acereason_tiny", PATH)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config(f"acereason_tiny_{name}")
  c.run_dir = str(tmp_path / c.run_dir)
  if c.model.weights.startswith("runs/"):
    c.model.weights = str(tmp_path / c.model.weights)
  c.steps = 2
  c.data.evaluation.count = 8
  c.data.prompts_per_step = 4
  c.rollout.samples_per_prompt = 4
  c.rollout.max_new_tokens = 24
  c.reward.deadline_s = 60.0
  c.sandbox.deadline_s = 50.0
  c.sandbox.test_s = 50.0
  c.mesh.fsdp = 1
  c.update(changes)
  return config.parse(c)


@pytest.fixture
def stage(tmp_path, monkeypatch):
  """Settings of a stage, in a directory of the test's own."""
  return lambda name: _stage(name, tmp_path, monkeypatch)


def test_a_stage_begins_with_the_weights_of_the_one_before(
  stage, tmp_path, monkeypatch
):
  first = train.run(stage("sft"))
  assert first.metrics["sft/loss"] > 0
  second = train.run(stage("math"))
  assert second.before.questions == 8
  settings = stage("code")
  rates = tmp_path / "rates.jsonl"
  data = {"questions": {"count": 12}}
  few = _stage("code", tmp_path, monkeypatch, data=data)
  rows = difficulty.measure(few, 4, rates)
  assert len(rows) == 12
  assert all(row["unscored"] == 0 for row in rows)
  # Whatever this policy can do, two questions are neither solved nor hopeless.
  for number, row in enumerate(rows):
    row["pass_rate"] = {3: 0.25, 5: 0.75}.get(number, number % 2)
  rates.write_text("".join(json.dumps(row) + "\n" for row in rows))
  data |= {"pass_rates": str(rates), "keep": "0.1..0.9"}
  data |= {"curriculum": "easy_first"}
  third = train.run(_stage("code", tmp_path, monkeypatch, data=data))
  assert settings.run_dir == str(third.files.path)
  asked = [completion["prompt"] for completion in third.completions]
  expected = [rows[number]["question"] for number in (5, 3, 5, 3)]
  assert list(dict.fromkeys(a.strip() for a in asked)) == expected[:2]
  assert third.metrics["rl/unscorable"] == 0
  saved = json.loads(third.files.settings.read_text())
  assert saved["isolation"]
  assert tiny_run.logged(third.files.path)[-1]["step"] == 2
