"""Values that no setting can have are refused, each in one sentence."""

import dataclasses
import math

import pytest

from bilevel_jax import config, errors, fields
from tests import tiny_run


@pytest.mark.parametrize(
  ("name", "value", "sentence"),
  [
    ("rl.dual_clip", math.inf, " must be a finite number, above 1, got inf"),
    ("adapter.alpha", math.inf, " must be a finite number, above 0, got inf"),
    ("adapter.alpha", 10**400, " must be a finite number, above 0, got inf"),
    (
      "reward.deadline_s",
      math.inf,
      " must be a finite number, above 0, got inf",
    ),
    (
      "rollout.temperature",
      math.nan,
      " must be a finite number, above 0, got n",
    ),
    ("method.merge.rl_weight", math.nan, " must be a finite number, got nan"),
    ("method.name", "", " must not be empty, got ''"),
    ("model.weights", "", " must not be empty, got ''"),
    ("run_dir", "", " must not be empty, got ''"),
    ("steps", 2**31, " must be at least 1, below 2^31, got 2147483648"),
    ("rollout.top_k", 10**11, " must be at least 0, below 2^31, got 1000000"),
    ("mesh.device_bytes", 2**63, " must be at least 1, below 2^63, got 92233"),
    ("reward.workers", 257, " must be at least 1, at most 256, got 257"),
    ("reward.weights", ("a",), "[0] must be a number, got 'a'"),
    ("reward.weights", (True,), "[0] must be a number, got True"),
    ("reward.weights", (None,), "[0] must be a number, got None"),
    ("reward.weights", (math.nan,), "[0] must be a finite number, got nan"),
    ("reward.verifiers", ("exact", 1), "[1] must be a string, got 1"),
    ("reward.verifiers", ("exact", ""), "[1] must not be empty, got ''"),
    ("reward.verifiers", ("exact", "exact"), " must name each verifier once"),
    ("adapter.targets", (1,), "[0] must be a string, got 1"),
    ("rollout.stop", ("a", ""), "[1] must not be empty, got ''"),
    ("logging.profile_steps", ("a",), "[0] must be an integer, got 'a'"),
    ("logging.profile_steps", (1.5,), "[0] must be an integer, got 1.5"),
    (
      "method.trapo.shares",
      (math.inf,),
      "[0] must be a finite number, got inf",
    ),
    ("data.questions.fields", {"id": 1}, ".id must be a string, got 1"),
  ],
)
def test_a_value_that_no_setting_can_have_is_refused(
  tmp_path, name, value, sentence
):
  settings = config.to_dict(tiny_run.parsed(tmp_path, "run"))
  *groups, field = name.split(".")
  group = settings
  for part in groups:
    group = group[part]
  group[field] = value
  with pytest.raises(errors.ConfigError) as caught:
    config.parse(settings)
  assert f"{name}{sentence}" in str(caught.value)
  assert "\n" not in str(caught.value)


def test_the_product_of_two_settings_is_bounded_too(tmp_path):
  with pytest.raises(errors.ConfigError, match=r"^samples must be below 2\^31"):
    tiny_run.parsed(
      tmp_path,
      "run",
      data__prompts_per_step=2**16,
      rollout__samples_per_prompt=2**15,
    )


def test_a_system_message_may_be_empty(tmp_path):
  parsed = tiny_run.parsed(tmp_path, "run", tokenizer__system_prompt="")
  assert parsed.tokenizer.system_prompt == ""


def test_every_default_keeps_its_own_bounds():
  def check(group):
    for field in dataclasses.fields(group):
      value = getattr(group, field.name)
      if dataclasses.is_dataclass(value):
        check(value)
      elif type(value) in (int, float):
        assert fields.must_be(value, field.metadata["rules"]) is None, field

  check(config.Config())
