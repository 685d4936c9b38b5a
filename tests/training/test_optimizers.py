"""The chains equal optax's own, and can be differentiated at zero."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax import config
from bilevel_jax.training import optimizers

UPDATES = 20


def params():
  keys = jax.random.split(jax.random.key(0), 8)
  normal = jax.random.normal
  return {
    "embedding": normal(keys[0], (6, 4)),
    "layers": {
      "q": {"kernel": normal(keys[1], (2, 4, 4)), "bias": jnp.ones((2, 4))},
      "q_norm": {"scale": jnp.ones((2, 4))},
    },
    "adapter": {
      "q": {"A": normal(keys[2], (2, 4, 2)), "B": normal(keys[3], (2, 2, 4))}
    },
  }


def gradients(step, size):
  tree = params()
  keys = jax.random.split(jax.random.key(step + 1), len(jax.tree.leaves(tree)))
  keys = jax.tree.unflatten(jax.tree.structure(tree), list(keys))
  return jax.tree.map(
    lambda p, k: size * jax.random.normal(k, p.shape), tree, keys
  )


def run(optimizer, tree, size):
  state = optimizer.init(tree)
  for step in range(3):
    updates, state = optimizer.update(gradients(step, size), state, tree)
    tree = optax.apply_updates(tree, updates)
  return tree


def assert_close(tree, other):
  for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("size", [1e-3, 1.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_optax_adamw(size, decay):
  settings = config.Optimizer(
    learning_rate=1e-2, weight_decay=decay, clip_norm=0.5
  )
  mask = jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key in ("kernel", "embedding", "A", "B"), params()
  )
  oracle = optax.chain(
    optax.clip_by_global_norm(0.5),
    optax.adamw(1e-2, weight_decay=decay, mask=mask),
  )
  ours = optimizers.build(settings, UPDATES)
  assert_close(run(ours, params(), size), run(oracle, params(), size))


@pytest.mark.parametrize("size", [1e-3, 1.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_optax_sgd(size, momentum):
  settings = config.Optimizer(
    name="sgd", learning_rate=1e-2, momentum=momentum, clip_norm=0.5
  )
  oracle = optax.chain(
    optax.clip_by_global_norm(0.5), optax.sgd(1e-2, momentum=momentum)
  )
  ours = optimizers.build(settings, UPDATES)
  assert_close(run(ours, params(), size), run(oracle, params(), size))


def test_a_gradient_within_the_norm_passes_to_the_bit():
  clip = optimizers.clip_by_global_norm(100.0)
  given = gradients(0, 1.0)
  updates, _ = clip.update(given, clip.init(given))
  for a, b in zip(
    jax.tree.leaves(given), jax.tree.leaves(updates), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_decay_leaves_stacked_norms_and_biases_alone():
  settings = config.Optimizer(
    name="sgd", learning_rate=1.0, weight_decay=0.5, clip_norm=None
  )
  tree = params()
  optimizer = optimizers.build(settings, UPDATES)
  zero = jax.tree.map(jnp.zeros_like, tree)
  updates, _ = optimizer.update(zero, optimizer.init(tree), tree)
  left = optax.apply_updates(tree, updates)
  layers, kept = left["layers"], tree["layers"]
  np.testing.assert_array_equal(
    layers["q_norm"]["scale"], kept["q_norm"]["scale"]
  )
  np.testing.assert_array_equal(layers["q"]["bias"], kept["q"]["bias"])
  for name in ("kernel",):
    np.testing.assert_allclose(layers["q"][name], kept["q"][name] / 2)
  np.testing.assert_allclose(left["embedding"], tree["embedding"] / 2)
  np.testing.assert_allclose(
    left["adapter"]["q"]["A"], tree["adapter"]["q"]["A"] / 2
  )


COMBINATIONS = list(
  itertools.product(
    [("adamw", 0.0), ("sgd", 0.0), ("sgd", 0.9)],
    ["constant", "cosine", "linear"],
    [0, 3],
    [0.0, 0.1],
    [None, 1.0],
  )
)


@pytest.mark.parametrize(
  ("kind", "schedule", "warmup", "decay", "clip"), COMBINATIONS
)
def test_derivative_through_an_update_is_finite_at_zero_gradient(
  kind, schedule, warmup, decay, clip
):
  optimizer = optimizers.build(
    config.Optimizer(
      name=kind[0],
      momentum=kind[1],
      learning_rate=1e-2,
      schedule=schedule,
      warmup_steps=warmup,
      weight_decay=decay,
      clip_norm=clip,
    ),
    UPDATES,
  )
  theta = {"kernel": jnp.array([[1.0, -2.0]])}

  def moved(w):
    # The inner gradient is w * theta: exactly zero at w = 0, though its
    # derivative with respect to w is not.
    grads = jax.tree.map(lambda x: w * x, theta)
    updates, _ = optimizer.update(grads, optimizer.init(theta), theta)
    return jnp.sum(optax.apply_updates(theta, updates)["kernel"] ** 2)

  first, second = jax.jvp(jax.grad(moved), (0.0,), (1.0,))
  assert np.isfinite(first)
  assert np.isfinite(second)
  if kind[0] == "sgd":
    # Plain gradient descent: d/dw |(1 - rate decay - rate w) theta|^2.
    rate = 1e-2 / max(1, warmup)
    expected = -2 * 5.0 * rate * (1 - rate * decay)
    np.testing.assert_allclose(first, expected, rtol=1e-5)


def test_warm_up_wastes_no_update_and_ends_at_the_peak():
  settings = config.Optimizer(learning_rate=2.0, warmup_steps=4)
  rate = optimizers.learning_rate(settings, UPDATES)
  np.testing.assert_allclose(
    [rate(i) for i in range(6)], [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
  )


@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_decay_follows_its_formula(schedule, warmup):
  settings = config.Optimizer(
    learning_rate=2.0, schedule=schedule, warmup_steps=warmup, end_share=0.1
  )
  rate = optimizers.learning_rate(settings, UPDATES)
  share = (np.arange(warmup, UPDATES + 1) - warmup) / (UPDATES - warmup)
  left = {"cosine": (1 + np.cos(np.pi * share)) / 2, "linear": 1 - share}
  expected = 2.0 * (0.1 + 0.9 * left[schedule])
  got = [rate(i) for i in range(warmup, UPDATES + 1)]
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_run_shorter_than_its_warm_up_still_runs():
  settings = config.Optimizer(
    learning_rate=1.0, schedule="cosine", warmup_steps=10
  )
  rate = optimizers.learning_rate(settings, 2)
  np.testing.assert_allclose([rate(0), rate(1)], [0.1, 0.2], rtol=1e-6)


def test_the_rate_that_is_logged_is_the_rate_that_is_applied():
  settings = config.Optimizer(
    name="sgd",
    learning_rate=0.5,
    schedule="linear",
    warmup_steps=2,
    clip_norm=None,
  )
  optimizer = optimizers.build(settings, 6)
  rate = optimizers.learning_rate(settings, 6)
  ones = {"kernel": jnp.ones(3)}
  state = optimizer.init(ones)
  for step in range(6):
    updates, state = optimizer.update(ones, state, ones)
    np.testing.assert_allclose(-updates["kernel"], np.full(3, rate(step)))


def test_muon_orthogonalises_each_layers_matrix_and_adamw_moves_the_rest():
  """Against a loop over layers in numpy; Keller Jordan's polynomial."""
  rate, beta = 1e-2, 0.95
  settings = config.Optimizer(name="muon", learning_rate=rate, clip_norm=None)
  tree = params()
  moved = run(optimizers.build(settings, UPDATES), tree, 1.0)
  adamw = config.Optimizer(learning_rate=rate, clip_norm=None)
  rest = run(optimizers.build(adamw, UPDATES), tree, 1.0)

  kernel = np.array(tree["layers"]["q"]["kernel"], np.float64)
  momentum = np.zeros_like(kernel)
  for step in range(3):
    gradient = np.array(gradients(step, 1.0)["layers"]["q"]["kernel"])
    momentum = beta * momentum + (1 - beta) * gradient
    ahead = beta * momentum / (1 - beta ** (step + 2))
    ahead += (1 - beta) * gradient / (1 - beta ** (step + 1))
    for layer, x in enumerate(ahead):
      x = x / np.linalg.norm(x)
      for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
      kernel[layer] -= rate * 0.2 * np.sqrt(max(x.shape)) * x
  np.testing.assert_allclose(
    moved["layers"]["q"].pop("kernel"), kernel, rtol=2e-4, atol=2e-5
  )
  rest["layers"]["q"].pop("kernel")
  assert_close(moved, rest)
