"""Runs of model.train=adapter: what they leave, and what goes on from it."""

import json
from unittest import mock

import jax
import numpy as np
import pytest

from bilevel_jax import errors, generate, train, weights
from bilevel_jax.models import lora
from bilevel_jax.training import run as run_lib
from bilevel_jax.weights import huggingface, peft_files
from tests import tiny_run
from tests.weights import directories

pytestmark = pytest.mark.usefixtures("programs_of_any_name")
MODE = {"model__train": "adapter", "method__bridge__upper": "demonstrations"}
UPPER = {"model__train": "adapter", "adapter__upper_targets": ("k_proj", "up")}


@pytest.fixture(scope="module")
def last(directory):
  """The last step of a run with a KL term, whose base is frozen."""
  changes = MODE | {"rl__kl_coef": 0.1, "checkpoints__export_merged": True}
  return train.run(tiny_run.parsed(directory, "factors", steps=2, **changes))


def test_only_the_factors_move(directory, last):
  start = weights.open(str(directory / "policy")).read(None)
  directories.assert_same_bits(last.run.frozen, start)
  assert set(last.run.state.base) == {"q", "v", "down"}
  assert last.metrics["bilevel/adapter_delta_norm"] > 0
  assert last.metrics["rl/kl_to_reference"] > 0
  # The sampler's merged weights are the learner's, but for rounding.
  assert abs(last.metrics["rollout/kl_to_learner"]) < 1e-5
  names = {name.split("/")[0] for name in jax.tree.leaves(_paths(last))}
  assert "layers" not in names


def _paths(last):
  state = last.run.state
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"),
    (state.base, state.optimizer_states, state.extra),
  )


def test_the_start_s_kl_and_the_reference_cost_no_copy(last):
  sizes = [x.size for x in jax.tree.leaves(last.run.reference)]
  assert sum(sizes) == sum(x.size for x in jax.tree.leaves(last.run.state.base))


def test_the_adapter_names_its_base_and_is_a_model_with_it(directory, last):
  export = last.files.export
  base = peft_files.read_base(export / "adapter")
  start = weights.open(str(directory / "policy"))
  assert base == (str(directory / "policy"), start.fingerprint(), None)
  whole = weights.open(str(export)).read(None)  # merged, as it was asked for
  alone = weights.open(str(export / "adapter"))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-7),
    alone.read(None),
    whole,
  )
  assert alone.fingerprint() != start.fingerprint()


def test_bridge_s_upper_adapter_is_on_other_matrices(directory):
  last = train.run(tiny_run.parsed(directory, "upper", steps=2, **UPPER))
  state = last.run.state
  assert set(state.adapter) == {"k", "up"}
  assert set(state.rl_only_base) == set(state.base) == {"q", "v", "down"}
  moved = [np.abs(np.asarray(f["B"])).max() for f in state.adapter.values()]
  assert min(moved) > 0
  # A run that exports no whole weights is opened by its adapter.
  assert not (last.files.export / "config.json").exists()
  opened = weights.open(str(last.files.path))
  assert opened.run == last.files.path
  loaded = peft_files.load_adapter(
    last.files.export / "adapter", opened.architecture
  )
  assert set(loaded.spec.targets) == {"q", "v", "down", "k", "up"}
  found = generate.main(
    ["--weights", str(last.files.path), "--prompt", "1+1", "--max-new-tokens=4"]
  )
  assert not found


def test_a_run_goes_on_from_an_adapter(directory, last):
  given = {"adapter__weights": str(last.files.path)}
  settings = tiny_run.parsed(directory, "on", steps=1, **MODE, **given)
  started = run_lib.gather(settings, scorer=mock.Mock())
  directories.assert_same_bits(started.state.base, last.run.state.base)
  fresh = run_lib.gather(
    tiny_run.parsed(directory, "fresh", steps=1, **MODE), scorer=mock.Mock()
  )
  assert started.host["model"] != fresh.host["model"]


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"adapter__rank": 4}, "needs adapter.rank=2, .*targets=q,v,down, got 4"),
    ({"adapter__alpha": 3.0}, "adapter.alpha=16 and .* got 2, 3 and"),
    ({"adapter__targets": ("q",)}, "got 2, 16 and q"),
    (
      {"adapter__weights": "nowhere"},
      "must be the directory of a PEFT adapter",
    ),
  ],
)
def test_an_adapter_that_does_not_fit_is_refused(
  changes, sentence, directory, last
):
  given = MODE | {"adapter__weights": str(last.files.path)} | changes
  with pytest.raises(errors.ConfigError, match=sentence):
    run_lib.gather(
      tiny_run.parsed(directory, "no", **given), scorer=mock.Mock()
    )


def test_an_adapter_of_another_base_is_refused(tmp_path, directory, last):
  other = tiny_run.weights(tmp_path, seed=1)
  changes = {
    "adapter__weights": str(last.files.path),
    "model__weights": str(other),
  }
  with pytest.raises(errors.ConfigError, match="weights are others"):
    run_lib.gather(
      tiny_run.parsed(directory, "no", **(MODE | changes)), scorer=mock.Mock()
    )
  # Nor is it opened, where the base that it names has changed.
  adapter = huggingface.export_adapter(
    tmp_path / "adapter",
    last.run.model.architecture,
    last.run.state.base,
    lora.Spec(rank=2, alpha=16.0, targets=("q", "v", "down")),
    base=peft_files.Base(str(other), "another hash"),
  )
  with pytest.raises(errors.ConfigError, match="an adapter of other weights"):
    weights.open(str(adapter))
  # Where the base was named anew by hand, it is taken by its name.
  path = adapter / "adapter_config.json"
  fields = json.loads(path.read_text())
  fields["base_model_name_or_path"] = str(directory / "policy")
  path.write_text(json.dumps(fields))
  assert weights.open(str(adapter)).read(None)


def test_methods_whose_upper_level_has_no_matrices_are_refused(directory):
  settings = tiny_run.parsed(directory, "no", model__train="adapter")
  with pytest.raises(errors.ConfigError, match="upper_targets must name its"):
    run_lib.gather(settings, scorer=mock.Mock())


def test_full_training_exports_the_base_that_its_adapter_fits(directory):
  last = train.run(tiny_run.parsed(directory, "whole", steps=1))
  base = peft_files.read_base(last.files.export / "adapter")
  assert base.name == str(last.files.export / "base")
  directories.assert_same_bits(
    weights.open(base.name).read(None), last.run.state.base
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
    weights.open(str(last.files.export / "adapter")).read(None),
    weights.open(str(last.files.export)).read(None),
  )


def test_four_devices_change_nothing_but_rounding(directory):
  changes = UPPER | {"steps": 2}
  one = train.run(tiny_run.parsed(directory, "one", **changes))
  four = train.run(tiny_run.parsed(directory, "four", mesh__fsdp=4, **changes))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4),
    four.run.state.base,
    one.run.state.base,
  )


@pytest.mark.parametrize("kind", ["bfloat16", "nf4"])
def test_a_base_in_fewer_bits_is_trained_over(kind, directory):
  changes = MODE | {"model__base_dtype": kind, "model__remat": "everything"}
  last = train.run(tiny_run.parsed(directory, kind, steps=1, **changes))
  kernels = last.run.frozen["layers"]["q"]["kernel"]
  if kind == "nf4":
    assert kernels["nf4"].dtype == np.uint8
    kernels = kernels["scales"]
  assert last.run.frozen["embedding"].dtype == "bfloat16"
  assert last.metrics["bilevel/adapter_delta_norm"] > 0
  assert abs(last.metrics["rollout/kl_to_learner"]) < 1e-4
  # The adapter names the base that the run was given, whatever it is kept in.
  base = peft_files.read_base(last.files.export / "adapter")
  assert base.name == str(directory / "policy")
