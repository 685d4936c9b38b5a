"""Memory, devices and number formats."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bilevel_jax.bilevel import implicit, unrolled
from bilevel_jax.bilevel.problem import gradient
from tests.bilevel.quadratic import relative

LAYERS, WIDTH = 8, 32


def _network(compute=jnp.float32):
  """A deep residual network with low-rank factors, scanned over its layers."""

  def objective(base, adapter, batch):
    def layer(x, weights):
      w, v, a, b = (t.astype(compute) for t in weights)
      hidden = jax.nn.gelu(x @ (w + a @ b))
      return x + hidden @ v / WIDTH**0.5, None

    x = batch[0].astype(compute)
    stack = (base["w"], base["v"], adapter["a"], adapter["b"])
    x, _ = jax.lax.scan(jax.checkpoint(layer), x, stack)
    error = x.astype(base["w"].dtype) - batch[1]
    return jnp.mean(jnp.square(error)), {"rows": jnp.arange(len(x))}

  return objective


def _inputs(rows=16, width=WIDTH, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  base = {
    "w": normal(LAYERS, width, 4 * width) / width**0.5,
    "v": normal(LAYERS, 4 * width, width) / width**0.5,
  }
  adapter = {
    "a": normal(LAYERS, width, 4) / width**0.5,
    "b": normal(LAYERS, 4, 4 * width) / 2,
  }
  batch = (normal(rows, width), normal(rows, width))
  return base, adapter, batch


def _hypergradient(estimate, objective):
  def run(base, adapter, batch, state):
    return estimate(
      gradient(objective),
      gradient(objective),
      base,
      adapter,
      batch,
      batch,
      state,
    )

  return run


def _temporary_bytes(function, *args):
  compiled = jax.jit(function).lower(*args).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_unroll_needs_a_quarter_of_the_memory_of_the_naive_one():
  steps = 4
  objective, optimizer = _network(), optax.adam(1e-3, eps_root=1e-16)
  base, adapter, batch = _inputs(rows=2048)
  state = optimizer.init(base)

  def naive(adapter, base, state):
    for _ in range(steps):
      grad = jax.grad(objective, has_aux=True)(base, adapter, batch)[0]
      updates, state = optimizer.update(grad, state, base)
      base = optax.apply_updates(base, updates)
    return objective(base, adapter, batch)[0]

  ours = _hypergradient(unrolled.unrolled(optimizer, steps=steps), objective)
  naive_bytes = _temporary_bytes(jax.grad(naive), adapter, base, state)
  bytes_ = _temporary_bytes(
    lambda *args: ours(*args).gradient, base, adapter, batch, state
  )
  assert 4 * bytes_ <= naive_bytes


def test_memory_of_the_unroll_grows_by_parameters_not_by_activations():
  objective, optimizer = _network(), optax.adam(1e-3, eps_root=1e-16)
  base, adapter, batch = _inputs(rows=2048)
  state = optimizer.init(base)
  parameters = sum(x.nbytes for x in jax.tree.leaves(base))

  def needed(steps):
    run = _hypergradient(unrolled.unrolled(optimizer, steps=steps), objective)
    return _temporary_bytes(
      lambda *args: run(*args).gradient, base, adapter, batch, state
    )

  # Adam: base and two moments.
  assert needed(6) - needed(2) <= 4 * 3 * parameters * 1.01


ESTIMATORS = {
  "unrolled": unrolled.unrolled(optax.sgd(0.02), steps=2),
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
  run = _hypergradient(ESTIMATORS[name], _network())
  base, adapter, batch = _inputs()
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


def test_bfloat16_compute_keeps_parameters_and_results_in_float32():
  name = "unrolled"
  base, adapter, batch = _inputs()
  state = optax.sgd(0.02).init(base)
  exact = jax.jit(_hypergradient(ESTIMATORS[name], _network()))
  rough = jax.jit(_hypergradient(ESTIMATORS[name], _network(jnp.bfloat16)))
  got, want = (f(base, adapter, batch, state) for f in (rough, exact))
  assert {x.dtype for x in jax.tree.leaves((got.gradient, got.base))} == {
    jnp.dtype("float32")
  }
  assert relative(got.gradient, want.gradient) < 0.05


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_keep_the_dtypes_they_are_given(name):
  with jax.enable_x64(True):
    base, adapter, batch = _inputs(rows=2, width=8, dtype=jnp.float64)
    state = optax.sgd(0.02).init(base)
    run = _hypergradient(ESTIMATORS[name], _network(jnp.float64))
    shapes = jax.eval_shape(run, base, adapter, batch, state)
  leaves = jax.tree.leaves((shapes.gradient, shapes.implicit, shapes.base))
  assert {x.dtype for x in leaves} == {jnp.dtype("float64")}
