"""Every leaf has a rule, every rule a leaf, and sizes must divide."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from bilevel_jax import config, errors, types
from bilevel_jax.methods import grpo
from bilevel_jax.models import lora, policy, presets, quantised
from bilevel_jax.training import learner, optimizers, sharding
from tests import tiny_run

V, D, LAYERS, HEADS, KV, HEAD_DIM, MLP, RANK = 16, 8, 2, 4, 2, 2, 12, 2


def projections():
  return {
    "q": (D, HEADS * HEAD_DIM),
    "k": (D, KV * HEAD_DIM),
    "v": (D, KV * HEAD_DIM),
    "o": (HEADS * HEAD_DIM, D),
    "gate": (D, MLP),
    "up": (D, MLP),
    "down": (MLP, D),
  }


def make_base():
  """The parameters of models.presets.Architecture, every option on."""
  layers = {
    name: {"kernel": jnp.zeros((LAYERS, *shape))}
    for name, shape in projections().items()
  }
  for name in ("q", "k", "v"):
    layers[name]["bias"] = jnp.zeros((LAYERS, projections()[name][1]))
  for name in ("attention_norm", "mlp_norm"):
    layers[name] = {"scale": jnp.ones((LAYERS, D))}
  for name in ("q_norm", "k_norm"):
    layers[name] = {"scale": jnp.ones((LAYERS, HEAD_DIM))}
  return {
    "embedding": jnp.zeros((V, D)),
    "layers": layers,
    "final_norm": {"scale": jnp.ones(D)},
    "head": {"kernel": jnp.zeros((D, V))},
  }


def make_quantised_bases():
  base = make_base()
  layers = base["layers"]

  def frozen(dtype):
    kept = {name: dict(part) for name, part in layers.items()}
    for name in projections():
      path, kernel = f"layers/{name}/kernel", layers[name]["kernel"]
      kept[name]["kernel"] = quantised.freeze(path, kernel, dtype)
    return {**base, "layers": kept}

  return {"int8": frozen("int8"), "nf4": frozen("nf4")}


def make_adapter():
  return {
    name: {
      "A": jnp.zeros((LAYERS, shape[0], RANK)),
      "B": jnp.zeros((LAYERS, RANK, shape[1])),
    }
    for name, shape in projections().items()
  }


def make_state():
  base, adapter = make_base(), make_adapter()
  adam = optax.adamw(1e-3)
  muon = optimizers.build(config.Optimizer(name="muon"), 1)
  return types.TrainState(
    updates=jnp.zeros((), jnp.int32),
    skipped_in_a_row=jnp.zeros((), jnp.int32),
    base=base,
    adapter=adapter,
    rl_only_base=base,
    optimizer_states={
      "base": adam.init(base),
      "adapter": adam.init(adapter),
      "rl_only_base": muon.init(base),
    },
    extra={"coefficient": jnp.zeros(())},
  )


def _idle_rules(tree):
  """Returns the patterns that place no leaf of the tree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  names = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in leaves
    if leaf.shape
  ]
  patterns = [pattern for pattern, _ in sharding.RULES]
  first = lambda name: next(p for p in patterns if re.search(p, name))
  used = set(map(first, names))
  return [pattern for pattern in patterns if pattern not in used]


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(1, 2, 2)


def test_mesh_has_the_three_axes_in_order(mesh):
  assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 2}
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_mesh_must_use_every_device():
  with pytest.raises(errors.ConfigError, match=r"must be 4, .* 1 x 2 x 1 = 2"):
    sharding.make_mesh(1, 2, 1)


def test_mesh_of_some_devices():
  mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
  assert mesh.size == 1


def test_every_leaf_of_a_train_state_has_a_place(mesh):
  state = make_state()
  placed = jax.device_put(state, sharding.shardings(state, mesh))
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True):
    np.testing.assert_array_equal(a, b)


def test_no_rule_is_idle():
  assert _idle_rules((make_state(), make_quantised_bases())) == []


@functools.cache
def preset_tree(name):
  model = policy.make(
    presets.get(name),
    adapter=lora.Spec(rank=16, alpha=16.0, targets=tuple(projections())),
    compute_dtype="float32",
    attention="xla",
    remat="none",
  )
  key = jax.random.key(0)
  return {
    "base": jax.eval_shape(model.init, key),
    "adapter": jax.eval_shape(model.init_adapter, key),
  }


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_can_be_split_over_four_devices(name):
  for shape in ((1, 4, 1), (1, 2, 2), (1, 1, 4)):
    sharding.shardings(preset_tree(name), sharding.make_mesh(*shape))


def test_no_rule_is_idle_over_the_presets():
  trees = {name: preset_tree(name) for name in presets.PRESETS}
  state = make_state()  # which has all that optimisers have
  others = state.optimizer_states, make_quantised_bases()
  assert _idle_rules((trees, others)) == []


def test_an_idle_rule_is_named():
  tied = {k: v for k, v in make_base().items() if k != "head"}
  frozen = {
    dtype: {"layers": base["layers"]}
    for dtype, base in make_quantised_bases().items()
  }
  tied = {"base": tied, "adapter": make_adapter(), "frozen": frozen}
  assert _idle_rules(tied) == [
    r"(^|/)head/kernel$",
    r"(^|/)ns_coeffs$",
  ]


def test_moments_lie_with_what_they_move(mesh):
  places = sharding.shardings(make_state(), mesh)
  adam = places.optimizer_states["base"][0]
  assert jax.tree.leaves(adam.mu) == jax.tree.leaves(places.base)
  assert jax.tree.leaves(adam.nu) == jax.tree.leaves(places.base)
  adam = places.optimizer_states["adapter"][0]
  assert jax.tree.leaves(adam.mu) == jax.tree.leaves(places.adapter)


def test_muons_momentum_lies_with_its_matrices(mesh):
  places = sharding.shardings(make_state(), mesh)
  states = places.optimizer_states["rl_only_base"][1].inner_states
  momentum = states["muon"].inner_state[0].mu
  for name in projections():
    kernel = places.base["layers"][name]["kernel"]
    assert momentum["layers"][name]["kernel"] == kernel


def test_every_matrix_is_split_over_fsdp_and_tensor(mesh):
  base = make_base()
  places = sharding.shardings(base, mesh)
  for (path, leaf), place in zip(
    jax.tree_util.tree_leaves_with_path(base),
    jax.tree.leaves(places),
    strict=True,
  ):
    if path[-1].key in ("kernel", "embedding"):
      part = math.prod(place.shard_shape(leaf.shape))
      assert part * mesh.size == leaf.size, path


def test_factors_multiply_where_their_kernel_lies(mesh):
  """A @ B has the kernel's sharding, so merging moves the rank alone."""
  places = sharding.shardings(
    {"layers": make_base()["layers"], "adapter": make_adapter()}, mesh
  )
  for name in projections():
    kernel = places["layers"][name]["kernel"].spec
    a = places["adapter"][name]["A"].spec
    b = places["adapter"][name]["B"].spec
    assert (a[1], b[2]) == (kernel[1], kernel[2])


def test_rows_are_split_over_data_and_fsdp():
  mesh = sharding.make_mesh(2, 2, 1)
  place = sharding.batch_sharding(mesh)
  assert place.shard_shape((8, 5)) == (2, 5)


def _with_its_own(base):
  """A state of a method that keeps arrays beside a copy of the base."""
  own = {
    "mu": jnp.zeros(()),
    "of_each": jnp.zeros((6, 4)),
    "told": [jnp.zeros(7), jnp.zeros((3, 5))],
    "reference": base,
  }
  return dataclasses.replace(make_state(), extra=own)


def test_a_methods_own_arrays_lie_on_every_device(mesh):
  state = _with_its_own(make_base())
  places = sharding.state_shardings(state, mesh)
  own = {k: v for k, v in places.extra.items() if k != "reference"}
  assert all(place.is_fully_replicated for place in jax.tree.leaves(own))
  # A copy of the base lies as the base does; so does all else as ever.
  assert jax.tree.leaves(places.extra["reference"]) == jax.tree.leaves(
    places.base
  )
  plain = dataclasses.replace(state, extra=None)
  assert jax.tree.leaves(
    dataclasses.replace(places, extra=None)
  ) == jax.tree.leaves(sharding.shardings(plain, mesh))


def test_a_method_may_name_an_axis_for_its_own_arrays_alone(mesh):
  rules = (
    (r"of_each$", PartitionSpec("fsdp", "tensor")),
    (r"(^|/)embedding$", PartitionSpec()),  # of its copy, not of the base
  )
  state = _with_its_own(make_base())
  places = sharding.state_shardings(state, mesh, rules)
  assert places.extra["of_each"].shard_shape((6, 4)) == (3, 2)
  assert places.extra["told"][0].is_fully_replicated
  assert places.extra["reference"]["embedding"].is_fully_replicated
  assert places.base["embedding"].shard_shape((V, D)) == (V // 2, D // 2)
  with pytest.raises(errors.ConfigError, match=r"told/0 .* multiple of mesh"):
    sharding.state_shardings(state, mesh, [(r"told/0", PartitionSpec("fsdp"))])


def test_no_array_that_is_not_a_methods_own_lies_by_default(mesh):
  state = dataclasses.replace(make_state(), base={"router": jnp.zeros(4)})
  with pytest.raises(errors.ConfigError, match="no sharding rule names base"):
    sharding.state_shardings(state, mesh)


def test_a_runs_state_lies_where_its_method_says(tmp_path, monkeypatch):
  build = grpo.build

  def with_arrays(options, setup):
    method = build(options, setup)

    def init(base, adapter):
      own = {"scores": jnp.zeros((4, 3)), "other": jnp.zeros((4, 3))}
      return dataclasses.replace(method.init(base, adapter), extra=own)

    rule = (r"scores$", PartitionSpec("fsdp"))
    return method._replace(init=init, placement=[rule])

  monkeypatch.setattr(grpo, "build", with_arrays)
  settings = tiny_run.parsed(tmp_path, "run", method__name="grpo")
  policy = tiny_run.make_policy()
  mesh = sharding.make_mesh(1, 2, 1, jax.devices()[:2])
  built = learner.build(settings, policy, mesh)
  state = built.programs.init(jax.jit(policy.init)(jax.random.key(0)), None)
  assert state.extra["scores"].sharding.shard_shape((4, 3)) == (2, 3)
  assert state.extra["other"].sharding.is_fully_replicated


def test_an_unknown_parameter_is_an_error(mesh):
  tree = {"layers": {"router": {"weight": jnp.zeros((2, 4))}}}
  with pytest.raises(errors.ConfigError, match=r"layers/router/weight .*2, 4"):
    sharding.shardings(tree, mesh)


def test_an_indivisible_dimension_is_an_error(mesh):
  tree = {"embedding": jnp.zeros((15, 8))}
  with pytest.raises(
    errors.ConfigError,
    match=r"embedding of shape \(15, 8\) .* dimension 0 .* mesh.tensor = 2, "
    "got 15",
  ):
    sharding.shardings(tree, mesh)


def test_a_rule_longer_than_the_shape_is_an_error(mesh):
  with pytest.raises(errors.ConfigError, match="fewer dimensions"):
    sharding.shardings({"head": {"kernel": jnp.zeros(4)}}, mesh)


def test_other_trees_bring_their_own_rules(mesh):
  rules = ((r"table$", PartitionSpec("tensor")), (r"[AB]$", PartitionSpec()))
  tree = {"table": jnp.zeros((4, 4)), "A": jnp.zeros((4, 2))}
  places = sharding.shardings(tree, mesh, rules)
  assert places["table"].shard_shape((4, 4)) == (2, 4)
  assert places["A"].is_fully_replicated


def test_a_training_step_is_the_same_on_every_mesh():
  """SGD on a matrix product: sharded against plain, as one program."""
  rows = jax.random.normal(jax.random.key(0), (8, D))
  base = {"head": {"kernel": jax.random.normal(jax.random.key(1), (D, V))}}

  def step(base, rows):
    def loss(base):
      return jnp.sum(jnp.square(rows @ base["head"]["kernel"])) / 64

    return jax.tree.map(lambda p, g: p - 0.1 * g, base, jax.grad(loss)(base))

  expected = np.asarray(jax.jit(step)(base, rows)["head"]["kernel"])
  for shape in ((4, 1, 1), (1, 4, 1), (1, 2, 2), (2, 1, 2)):
    mesh = sharding.make_mesh(*shape)
    places = sharding.shardings(base, mesh)
    split = jax.jit(
      step,
      in_shardings=(places, sharding.batch_sharding(mesh)),
      out_shardings=places,
    )(base, rows)
    np.testing.assert_allclose(
      split["head"]["kernel"], expected, rtol=1e-5, atol=1e-6
    )
