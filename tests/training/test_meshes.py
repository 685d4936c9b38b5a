"""The mesh that is chosen for a run, and runs that are refused."""

import dataclasses
import functools

import jax
import pytest

from bilevel_jax import config, errors
from bilevel_jax.models import presets, transformer
from bilevel_jax.rollout import cache, engine
from bilevel_jax.rollout.row_sharding import RowSharding
from bilevel_jax.training import memory_plan, meshes, sharding, sources

GIB = 2**30


def settings(**sizes):
  c = config.default_config()
  c.model.preset = "qwen2.5-3b"
  c.model.compute_dtype = "bfloat16"
  c.model.attention = "chunked"
  c.data.questions.task = "arithmetic"
  c.training.micro_batch_tokens = 4096
  for name, size in sizes.items():
    c.mesh[name] = size
  return config.parse(c)


def choose(devices, gib, *, given=None, preset="qwen2.5-3b", **changes):
  architecture = dataclasses.replace(presets.get(preset), **changes)
  return meshes.choose(
    settings(**(given or {})), architecture, devices, int(gib * GIB)
  )


def base_of(architecture):
  init = functools.partial(transformer.init, architecture=architecture)
  return jax.eval_shape(init, jax.random.key(0))


def test_a_small_model_is_copied_to_each_device():
  chosen = choose(8, 80, preset="smollm2-135m")
  assert chosen.sizes == (8, 1, 1)
  assert chosen.plan.peak < 40 * GIB


def test_parameters_are_split_where_a_copy_is_not_small():
  assert choose(8, 80).sizes == (1, 8, 1)


def test_what_does_not_divide_the_width_is_left_to_the_data_axis():
  chosen = choose(6, 80)  # a width of 2048 cannot be split in six
  assert chosen.sizes == (3, 2, 1)
  assert "divide" in chosen.reason


def test_matrices_are_split_only_where_the_rest_does_not_fit():
  least = choose(4, 80).plan.peak / GIB
  tighter = choose(4, least - 0.1)
  assert tighter.sizes.tensor == 2
  assert tighter.plan.peak < least * GIB


def test_a_cache_that_does_not_fit_is_sampled_in_several_waves():
  """As a run does it: no run is refused for a cache that is never made."""
  c = config.default_config()
  c.model.preset = "qwen2.5-3b"
  c.model.compute_dtype = "bfloat16"
  c.model.attention = "chunked"
  c.method.name = "grpo"
  c.data.questions.task = "arithmetic"
  c.data.prompts_per_step, c.rollout.samples_per_prompt = 128, 8
  c.rollout.max_new_tokens = 3072
  c.training.micro_batch_tokens = 4096
  architecture = presets.get("qwen2.5-3b")
  plans = {
    gib: meshes.choose(config.parse(c), architecture, 1, gib * GIB).plan
    for gib in (76, 141, 100_000)
  }
  held = {}
  for gib, plan in plans.items():
    (held[gib],) = (
      size for name, size in plan.generation.items() if "KV cache" in name
    )
    free = gib * GIB - sum(plan.resident.values())
    assert held[gib] <= cache.SHARE_OF_FREE * free
    assert plan.peak <= gib * GIB
  assert held[76] < held[141] < held[100_000]
  assert held[100_000] == 1024 * cache.bytes_per_row(
    sources.build_policy(config.parse(c), architecture),
    engine.cache_columns(c.data.max_prompt_tokens, 3072),
  )


def test_a_run_that_cannot_fit_says_what_it_would_take():
  with pytest.raises(errors.ConfigError, match=r"has 10\.0") as refusal:
    choose(1, 10)
  for term in ("base", "RL-only base", "optimiser states", "KV cache"):
    assert term in str(refusal.value)


def test_the_compiler_is_asked_before_a_run_is_refused():
  """A plan is a bound: of rows in several passes it is too high by a third."""
  c = config.default_config()
  c.model.preset = "smollm2-135m"
  c.model.attention = "chunked"
  c.method.name = "grpo"
  c.data.questions.task = "arithmetic"
  c.data.max_prompt_tokens = c.rollout.max_new_tokens = 64
  c.data.prompts_per_step = 4
  c.training.micro_batch_tokens = 512
  architecture = dataclasses.replace(
    presets.get("smollm2-135m"), layers=1, vocab_size=2048
  )
  on = functools.partial(meshes.choose, config.parse(c), architecture, 1)
  planned = on(None).plan
  limit = int(0.9 * planned.peak)
  with pytest.raises(errors.ConfigError, match="has 0"):
    on(limit)
  asked = on(limit, jax.devices()).plan
  assert asked.peak <= limit < planned.peak
  state = sum(asked.resident.values()) - asked.resident["reference"]
  assert state < asked.compiled < planned.update_program
  assert "by the compiler" in memory_plan.table(asked)


def test_sizes_that_are_given_are_kept():
  assert choose(8, 80, given={"fsdp": 2, "tensor": 2}).sizes == (1, 2, 2)
  assert choose(8, 80, given={"tensor": 2}).sizes == (1, 4, 2)
  with pytest.raises(errors.ConfigError, match=r"must be 8, .* 3 x 2 x 1 = 6"):
    choose(8, 80, given={"data": 3})


def test_terms_of_a_known_model():
  """Parameters of Qwen2.5-3B: 3.0859e9, as published; LoRA of rank 16."""
  architecture = presets.get("qwen2.5-3b")
  plan = memory_plan.plan(
    settings(), architecture, meshes.Sizes(1, 1, 1).abstract()
  )
  parameters = 3_085_938_688
  adapter = (
    36 * 16 * (sum(sum(sizes) for sizes in architecture.projections.values()))
  )
  assert plan.resident["base"] == 4 * parameters
  assert plan.resident["reference"] == 2 * parameters
  assert plan.resident["adapter"] == 4 * adapter
  moments = plan.resident["optimiser states"]
  assert abs(moments - 8 * (2 * parameters + adapter)) < 100
  assert plan.generation["merged weights"] == 2 * parameters
  split = memory_plan.plan(
    settings(), architecture, meshes.Sizes(1, 8, 1).abstract()
  )
  # Norms and biases are on every device.
  assert split.resident["base"] < 1.001 * 4 * parameters / 8


def test_offloading_leaves_no_activations_on_the_device():
  architecture, mesh = presets.get("qwen3-0.6b"), meshes.Sizes(1, 1, 1)
  kept = {}
  for remat in ("none", "attention_and_mlp", "everything", "offload"):
    given = settings()
    model = dataclasses.replace(given.model, remat=remat)
    given = dataclasses.replace(given, model=model)
    plan = memory_plan.plan(given, architecture, mesh.abstract())
    kept[remat] = plan.update["activations kept"]
  assert kept["offload"] == 0
  assert kept["everything"] < kept["attention_and_mlp"] < kept["none"]


@pytest.mark.parametrize(
  ("preset", "devices", "gib", "copies"),
  [
    ("smollm2-135m", 4, 16, 4),
    ("qwen3-8b", 4, 80, 4),  # 46 GiB as it is read
    ("qwen3-8b", 4, 40, 2),
    ("qwen3-8b", 4, None, 4),
    ("qwen3-8b", 6, 40, 3),
  ],
)
def test_samplers_share_weights_among_as_few_devices_as_hold_them(
  preset, devices, gib, copies, monkeypatch
):
  limit = None if gib is None else gib * GIB
  monkeypatch.setattr(meshes, "_reported_bytes", lambda _: limit)
  monkeypatch.setattr(
    sharding,
    "make_mesh",
    lambda *sizes, devices: meshes.Sizes(*sizes).abstract(),
  )
  architecture = presets.get(preset)
  base = jax.eval_shape(
    functools.partial(transformer.init, architecture=architecture),
    jax.random.key(0),
  )
  rows, places = meshes.for_sampling(
    architecture, base, devices=[None] * devices
  )
  assert RowSharding(rows).shards == copies
  kernel = base["layers"]["up"]["kernel"].shape
  part = places["layers"]["up"]["kernel"].shard_shape(kernel)
  assert part == (*kernel[:2], kernel[2] * copies // devices)


def test_weights_that_no_split_makes_fit_are_refused(monkeypatch):
  monkeypatch.setattr(meshes, "_reported_bytes", lambda _: 10 * GIB)
  base = base_of(architecture := presets.get("qwen3-8b"))
  with pytest.raises(errors.ConfigError, match=r"11\.4 GiB on each of 4"):
    meshes.for_sampling(architecture, base, devices=[None] * 4)
