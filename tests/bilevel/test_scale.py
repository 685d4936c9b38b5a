"""Memory, devices and number formats."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bilevel_jax.bilevel import implicit, unrolled
from tests import processes
from tests.bilevel import network
from tests.bilevel.quadratic import relative


def _temporary_bytes(function, *args):
  compiled = jax.jit(function).lower(*args).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_unroll_needs_a_quarter_of_the_memory_of_the_naive_one():
  steps = 4
  objective, optimizer = network.objective(), optax.adam(1e-3, eps_root=1e-16)
  base, adapter, batch = network.inputs(rows=2048)
  state = optimizer.init(base)

  def naive(adapter, base, state):
    for _ in range(steps):
      grad = jax.grad(objective, has_aux=True)(base, adapter, batch)[0]
      updates, state = optimizer.update(grad, state, base)
      base = optax.apply_updates(base, updates)
    return objective(base, adapter, batch)[0]

  ours = network.hypergradient(
    unrolled.unrolled(optimizer, steps=steps), objective
  )
  naive_bytes = _temporary_bytes(jax.grad(naive), adapter, base, state)
  bytes_ = _temporary_bytes(
    lambda *args: ours(*args).gradient, base, adapter, batch, state
  )
  assert 4 * bytes_ <= naive_bytes


def test_memory_of_the_unroll_grows_by_parameters_not_by_activations():
  objective, optimizer = network.objective(), optax.adam(1e-3, eps_root=1e-16)
  base, adapter, batch = network.inputs(rows=2048)
  state = optimizer.init(base)
  parameters = sum(x.nbytes for x in jax.tree.leaves(base))

  def needed(steps):
    run = network.hypergradient(
      unrolled.unrolled(optimizer, steps=steps), objective
    )
    return _temporary_bytes(
      lambda *args: run(*args).gradient, base, adapter, batch, state
    )

  # Adam: base and two moments.
  assert needed(6) - needed(2) <= 4 * 3 * parameters * 1.01


ESTIMATORS = {
  "unrolled": network.UNROLLED,
  "conjugate_gradient": implicit.implicit(
    implicit.conjugate_gradient(iterations=3), damping=1.0
  ),
  "neumann": implicit.implicit(implicit.neumann(terms=2, step=0.02)),
  "one_step": implicit.one_step(0.02),
  "finite_difference": implicit.one_step(
    0.02, mixed_product="finite_difference"
  ),
}


@pytest.mark.parametrize(
  ("name", "tolerance"),
  # Conjugate gradients divide sums by sums, which multiplies rounding errors.
  [
    ("unrolled", 1e-6),
    ("conjugate_gradient", 1e-5),
  ],
)
def test_four_devices_agree_with_one(name, tolerance):
  run = network.hypergradient(ESTIMATORS[name], network.objective())
  base, adapter, batch = network.inputs()
  state = optax.sgd(0.02).init(base)
  one = jax.jit(run)(base, adapter, batch, state)
  mesh = jax.make_mesh(
    (4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  put = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
  four = jax.jit(run)(
    put(base, PartitionSpec(None, "fsdp")),
    put(adapter, PartitionSpec(None, None, None)),
    put(batch, PartitionSpec("fsdp")),
    state,
  )
  assert relative(four.gradient, one.gradient) < tolerance


def test_two_processes_agree_with_one(tmp_path):
  """Over loopback, each with half of the parameters and of the rows."""
  file = tmp_path / "gradient.npz"
  processes.run_pair("tests.bilevel.two_processes", file)
  base, adapter, batch = network.inputs()
  run = network.hypergradient(network.UNROLLED, network.objective())
  state = optax.sgd(network.STEP).init(base)
  one = jax.jit(run)(base, adapter, batch, state)
  with np.load(file) as two:
    assert relative(dict(two), jax.device_get(one.gradient)) < 1e-6


def test_bfloat16_compute_keeps_parameters_and_results_in_float32():
  name = "unrolled"
  base, adapter, batch = network.inputs()
  state = optax.sgd(0.02).init(base)
  exact = jax.jit(network.hypergradient(ESTIMATORS[name], network.objective()))
  rough = jax.jit(
    network.hypergradient(ESTIMATORS[name], network.objective(jnp.bfloat16))
  )
  got, want = (f(base, adapter, batch, state) for f in (rough, exact))
  assert {x.dtype for x in jax.tree.leaves((got.gradient, got.lower))} == {
    jnp.dtype("float32")
  }
  assert relative(got.gradient, want.gradient) < 0.05


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_keep_the_dtypes_they_are_given(name):
  with jax.enable_x64(True):
    base, adapter, batch = network.inputs(rows=2, width=8, dtype=jnp.float64)
    state = optax.sgd(0.02).init(base)
    run = network.hypergradient(
      ESTIMATORS[name], network.objective(jnp.float64)
    )
    shapes = jax.eval_shape(run, base, adapter, batch, state)
  leaves = jax.tree.leaves((shapes.gradient, shapes.implicit, shapes.lower))
  assert {x.dtype for x in leaves} == {jnp.dtype("float64")}
