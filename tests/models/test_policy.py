"""Which dtype is computed in, where none is asked for."""

import types

import jax
import pytest

from bilevel_jax import config
from bilevel_jax.models import policy

CASES = [
  ("cpu", None, "float32"),
  ("gpu", "7.5", "float32"),  # T4
  ("gpu", "8.0", "bfloat16"),  # A100
  ("gpu", "12.0", "bfloat16"),
  ("tpu", None, "bfloat16"),
]


@pytest.mark.parametrize(("platform", "capability", "expected"), CASES)
def test_bfloat16_is_taken_where_the_device_has_it(
  platform, capability, expected, monkeypatch
):
  device = types.SimpleNamespace(platform=platform)
  if capability is not None:
    device.compute_capability = capability
  assert policy.dtype_of(device) == expected
  monkeypatch.setattr(jax, "devices", lambda: [device])
  assert config.Model().dtype == expected
  assert config.Model(compute_dtype="float32").dtype == "float32"
