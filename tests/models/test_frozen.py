"""LoRA factors over a frozen base: the same policy, and no gradient of it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import errors
from bilevel_jax.models import lora, presets
from tests.models import tiny

ALL = lora.Spec(rank=4, alpha=8.0, targets=tiny.ALL)
ROW = tiny.row(np.random.default_rng(0), 96, [13, 5])


def _policy(name="tiny-qwen3", **changes):
  return tiny.make(name, **({"adapter": None, "trained": ALL} | changes))


@pytest.mark.parametrize("name", tiny.NAMES)
def test_it_is_the_policy_of_the_merged_weights(name):
  whole, policy = tiny.make(name), _policy(name)
  base, factors = tiny.weights(whole)
  over = policy.over(base)

  def run(hidden):
    def loss(factors):
      h = hidden(factors)
      return jnp.sum(jnp.sin(h)), h

    return jax.jit(jax.grad(loss, has_aux=True))(factors)

  by, h = run(lambda factors: over.hidden(factors, None, *ROW))
  expected_by, expected = run(lambda factors: whole.hidden(base, factors, *ROW))
  np.testing.assert_allclose(h, expected, atol=2e-5)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, atol=2e-5 * max(1.0, float(jnp.abs(y).max()))
    ),
    by,
    expected_by,
  )
  same = jax.tree.map(
    np.array_equal, over.merge(factors, None), whole.merge(base, factors)
  )
  assert all(jax.tree.leaves(same))
  np.testing.assert_array_equal(
    over.unembedding(factors), whole.unembedding(base)
  )


def test_an_adapter_on_other_matrices_is_added():
  """The lower level's factors and the upper's are one adapter, in two trees."""
  spec = lambda *targets: lora.Spec(rank=4, alpha=8.0, targets=targets)
  policy = _policy(trained=spec("q", "down"), adapter=spec("v", "up"))
  whole = tiny.make(adapter=spec("q", "down", "v", "up"))
  base, factors = tiny.weights(whole)
  lower = {name: factors[name] for name in ("q", "down")}
  upper = {name: factors[name] for name in ("v", "up")}
  for init, expected in ((policy.init, lower), (policy.init_adapter, upper)):
    found = init(jax.random.key(0))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
  np.testing.assert_allclose(
    policy.over(base).hidden(lower, upper, *ROW),
    whole.hidden(base, factors, *ROW),
    atol=2e-5,
  )


def test_a_fresh_start_is_the_base_to_the_bit():
  policy, whole = _policy("tiny-qwen2"), tiny.make("tiny-qwen2")
  base, _ = tiny.weights(whole)
  factors = jax.jit(policy.init)(jax.random.key(0))
  np.testing.assert_array_equal(
    jax.jit(policy.over(base).hidden)(factors, None, *ROW),
    jax.jit(policy.over(base).hidden)({}, None, *ROW),
  )


def _products(program, shapes):
  """Products in the compiled text whose result has one of the shapes."""
  wanted = "|".join(",".join(map(str, shape)) for shape in shapes)
  pattern = rf"= \w+\[(?:\d+,)?(?:{wanted})\]\S* (?:dot|convolution|add)\("
  return re.findall(pattern, program)


def test_nothing_of_a_matrix_s_size_is_differentiated():
  """No product or sum in the compiled gradient has the shape of a matrix."""
  sizes = presets.get("tiny-qwen3")
  shapes = set(sizes.projections.values())
  shapes |= {shape[::-1] for shape in shapes}
  shapes |= {(96, 32), (32, 96)}  # the embedding, and its transpose

  def compiled(policy, hidden, tree):
    def loss(tree):
      return jnp.sum(jnp.sin(hidden(tree) @ jnp.ones((32, 5))))

    return jax.jit(jax.grad(loss)).lower(tree).compile().as_text()

  whole, policy = tiny.make(), _policy()
  base, factors = tiny.weights(whole)
  text = compiled(
    policy, lambda f: policy.over(base).hidden(f, None, *ROW), factors
  )
  assert not _products(text, shapes)
  # The adapter that is merged into what is trained forms dW.
  text = compiled(whole, lambda f: whole.hidden(base, f, *ROW), factors)
  assert _products(text, shapes)


def test_a_policy_without_its_base_says_so():
  policy = _policy()
  with pytest.raises(ValueError, match="needs its frozen base"):
    policy.hidden(policy.init(jax.random.key(0)), None, *ROW)


def test_names_of_peft_are_understood():
  spec = lambda *targets: lora.Spec(targets=targets)
  assert spec("q_proj", "down").targets == ("q", "down")
  assert spec("all-linear").targets == tiny.ALL
  assert hash(spec("q_proj")) == hash(spec("q"))
  with pytest.raises(errors.ConfigError, match="got q, q"):
    _policy(trained=spec("q", "q_proj"))
  with pytest.raises(errors.ConfigError, match="got all-linear, q"):
    _policy(trained=spec("all-linear", "q"))
