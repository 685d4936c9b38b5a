"""A study is the same whatever the library's defaults become."""

import json

import pytest

from bilevel_jax import config, errors
from configs import smollm2_svamp
from experiments.engine import pinned, work
from experiments.studies import arithmetic, spoiled, svamp

OTHERS = {
  "rl.kl_coef": 0.123,
  "optimizer.base.schedule": "cosine",
  "method.staged.highest_accuracy": [0.1, 1.0, 1.0],
  "evaluation.every": None,
}


@pytest.fixture
def others(monkeypatch, tmp_path):
  """The pinned settings as if the library's defaults were others."""
  values = json.loads(pinned.FILE.read_text("utf-8"))
  file = tmp_path / "pinned.json"
  monkeypatch.setattr(pinned, "FILE", file)

  def pin(changes):
    file.write_text(json.dumps(values | changes))

  return pin


def test_a_pinned_setting_counts_and_not_the_default(others):
  others(OTHERS)
  found = dict(config.flat(pinned.settings().to_dict()))
  assert json.loads(json.dumps({n: found[n] for n in OTHERS})) == OTHERS
  assert config.to_dict(config.parse(svamp.get_study().settings))
  assert arithmetic.get_study().settings.rl.kl_coef == 0.123


def test_what_a_config_changes_is_kept(others):
  others(OTHERS | {"optimizer.base.learning_rate": 0.5})
  c = pinned.settings(smollm2_svamp.get_config())
  assert c.optimizer.base.learning_rate == 5e-5
  assert c.rl.kl_coef == 0.123


def test_a_pinned_setting_that_is_gone_is_refused(others):
  others({"rl.no_such": 1})
  with pytest.raises(errors.ConfigError, match=r"rl\.no_such, which is no"):
    pinned.settings()


def test_a_result_stays_known_when_a_default_changes(monkeypatch):
  study = spoiled.get_study()
  [job, *_] = spoiled.plan.final(study, "clean", {})["mixed"].values()
  before = work.fingerprint(job)
  changed = config.defaults() | {"rl.kl_coef": 0.123}
  monkeypatch.setattr(config, "defaults", lambda: changed)
  assert work.fingerprint(job) == before
