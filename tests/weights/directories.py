"""Architectures of every family, and Hugging Face directories of them."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from bilevel_jax.models import presets
from tests.models import tiny

LLAMA3 = presets.Llama3Scaling(
  factor=32.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_positions=16,
)
LLAMA = presets.Architecture(
  family="llama",
  vocab_size=52,
  width=16,
  layers=3,
  heads=4,
  kv_heads=2,
  head_dim=4,
  mlp_width=24,
  max_positions=1024,
  rope_theta=500000.0,
  norm_eps=1e-5,
)
FAMILIES = {
  "llama": LLAMA,
  "llama3": dataclasses.replace(LLAMA, rope_scaling=LLAMA3),
  "qwen2": dataclasses.replace(LLAMA, family="qwen2", attention_bias=True),
  "qwen3": dataclasses.replace(LLAMA, family="qwen3", qk_norm=True, head_dim=8),
}
UNTIED = {
  f"{name}_untied": dataclasses.replace(architecture, tied_embeddings=False)
  for name, architecture in FAMILIES.items()
}
EVERY = pytest.mark.parametrize(
  "architecture", list((FAMILIES | UNTIED).values()), ids=FAMILIES | UNTIED
)


def base(architecture, seed=0):
  """Returns random weights, in the tree that the architecture's policy has."""
  return tiny.weights(tiny.make(architecture), seed=seed)[0]


def adapter(architecture, targets=tiny.ALL):
  """Returns a random adapter on the targets; its scale is 2 in `tiny.make`."""
  everything = tiny.weights(tiny.make(architecture))[1]
  return {target: everything[target] for target in targets}


def assert_same_bits(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def edit_json(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
