"""The forward pass: what a token sees, what padding does, dtypes, sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import errors
from bilevel_jax.models import presets, transformer
from tests.models import tiny


@pytest.mark.parametrize("kernel", ["xla", "chunked"])
def test_a_token_depends_on_earlier_tokens_of_its_segment_and_no_others(kernel):
  policy = tiny.make("tiny-qwen3", attention=kernel)
  base, adapter = tiny.weights(policy)
  tokens = np.arange(10, 20, dtype=np.int32)[None]  # all distinct
  segments = np.asarray([[1, 1, 1, 1, 2, 2, 2, 2, 0, 0]], np.int32)
  positions = np.asarray([[0, 1, 2, 3, 0, 1, 2, 3, 0, 0]], np.int32)

  @functools.partial(jax.jit, static_argnums=1)
  def dependence(embedding, column):
    def state(embedding):
      h = policy.hidden(
        {**base, "embedding": embedding}, adapter, tokens, positions, segments
      )
      return jnp.vdot(h[0, column], jnp.sin(jnp.arange(h.shape[-1])))

    return jnp.abs(jax.grad(state)(embedding)).sum(-1)[tokens[0]]

  for column, seen in [(2, range(3)), (5, range(4, 6)), (7, range(4, 8))]:
    moved = np.asarray(dependence(base["embedding"], column))
    for c in range(10):
      assert (moved[c] > 1e-6) == (c in seen), (column, c)
      assert c in seen or moved[c] == 0


@pytest.mark.parametrize("kernel", ["xla", "chunked"])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_packed_rows_equal_separate_rows(name, kernel):
  with jax.enable_x64(True):
    policy = tiny.make(name, attention=kernel, compute_dtype="float64")
    base, adapter = tiny.weights(policy, dtype=np.float64)
    tokens, positions, segments = tiny.row(
      np.random.default_rng(1), policy.vocab_size, [7, 12, 5], padding=3
    )
    hidden = jax.jit(policy.hidden)
    packed = hidden(base, adapter, tokens, positions, segments)[0]
    for n in (1, 2, 3):
      mine = segments[0] == n
      alone = np.pad(tokens[0][mine], (0, 27 - mine.sum()))[None]
      at = np.arange(27, dtype=np.int32)[None]
      ids = (at < mine.sum()).astype(np.int32)
      separate = hidden(base, adapter, alone, at, ids)[0, : mine.sum()]
      np.testing.assert_allclose(packed[mine], separate, atol=1e-12)
    assert np.isfinite(packed).all()


def test_left_padding_equals_right_padding():
  policy = tiny.make()
  base, adapter = tiny.weights(policy)
  hidden = jax.jit(policy.hidden)
  rows = [
    tiny.row(np.random.default_rng(2), 96, [11], padding=6, left=left)
    for left in (True, False)
  ]
  left, right = (hidden(base, adapter, *row)[0] for row in rows)
  np.testing.assert_allclose(left[6:], right[:11], atol=2e-6)


def test_only_differences_of_positions_matter():
  policy = tiny.make()
  base, adapter = tiny.weights(policy)
  tokens, positions, segments = tiny.row(np.random.default_rng(2), 96, [11])
  hidden = jax.jit(policy.hidden)
  here, shifted, stretched = (
    hidden(base, adapter, tokens, p, segments)
    for p in (positions, positions + 40, 2 * positions)
  )
  np.testing.assert_allclose(here, shifted, atol=1e-5)
  assert jnp.abs(here - stretched)[0, 1:].max(-1).min() > 1e-2


def test_policies_of_rematerialisation_give_equal_gradients_for_less_memory():
  architecture = presets.Architecture(
    family="llama",
    vocab_size=32,
    width=16,
    layers=12,  # so that what a layer keeps outweighs what one works with
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp_width=64,
    max_positions=256,
  )
  row = tiny.row(np.random.default_rng(3), 32, [128])
  gradients, memory = [], []
  for name in ("none", "attention_and_mlp", "everything", "offload"):
    policy = tiny.make(architecture, remat=name)
    base, _ = tiny.weights(policy)

    def loss(base, hidden=policy.hidden):
      return jnp.sum(jnp.tanh(hidden(base, None, *row)) ** 2)

    program = jax.jit(jax.grad(loss)).lower(base).compile()
    gradients.append(program(base))
    analysis = program.memory_analysis()
    assert analysis is not None
    memory.append(analysis.temp_size_in_bytes)
  for other in gradients[1:]:
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(
        x, y, atol=1e-5 * float(jnp.abs(x).max())
      ),
      gradients[0],
      other,
    )
  assert memory[0] > memory[1] > memory[2]


def test_float64_gradients_are_finite_differences():
  with jax.enable_x64(True):
    policy = tiny.make("tiny-qwen3", compute_dtype="float64")
    point = tiny.weights(policy, dtype=np.float64)
    direction = tiny.weights(policy, seed=1, dtype=np.float64)
    row = tiny.row(np.random.default_rng(4), 96, [9], padding=2)

    def loss(point):
      base, adapter = point
      h = policy.hidden(base, adapter, *row)[:, :9]
      scores = policy.logits(policy.merge(base, adapter), h)
      assert scores.dtype == h.dtype == jnp.float64
      return jnp.sum(jnp.tanh(scores) ** 2)

    run = jax.jit(jax.value_and_grad(loss))
    gradient = run(point)[1]
    exact = sum(
      jnp.vdot(g, d)
      for g, d in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True
      )
    )
    step = 1e-6
    above, below = (
      run(jax.tree.map(lambda x, d, s=s: x + s * d, point, direction))[0]
      for s in (step, -step)
    )
    np.testing.assert_allclose((above - below) / (2 * step), exact, rtol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_learner_and_sampler_weights_are_bit_identical(dtype):
  policy = tiny.make("tiny-qwen2", compute_dtype=dtype)
  base, adapter = tiny.weights(policy)
  row = tiny.row(np.random.default_rng(5), 96, [20])
  weights = jax.jit(policy.merge)(base, adapter)
  assert {x.dtype for x in jax.tree.leaves(weights)} == {jnp.dtype(dtype)}

  # A base that is the sampler's weights to the bit, stacked again.
  layers = jax.tree.map(lambda *x: jnp.stack(x), *weights["layers"])
  sampler = jax.tree.map(
    lambda x: x.astype(jnp.float32), {**weights, "layers": layers}
  )
  hidden = jax.jit(policy.hidden)
  learner = hidden(base, adapter, *row)
  np.testing.assert_array_equal(learner, hidden(sampler, None, *row))
  assert not np.array_equal(learner, hidden(base, None, *row))


def test_weights_are_rounded_by_an_operation_that_xla_may_not_elide():
  # GPUs drop the casts of f32 -> bf16 -> f32; a CPU keeps them, so that only
  # the program tells.
  policy = tiny.make(compute_dtype="bfloat16")
  base, adapter = tiny.weights(policy)
  row = tiny.row(np.random.default_rng(5), 96, [20])
  for program in (
    jax.make_jaxpr(policy.hidden)(base, adapter, *row),
    jax.make_jaxpr(policy.merge)(base, adapter),
  ):
    assert "reduce_precision[exponent_bits=8 mantissa_bits=7]" in str(program)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_logits_are_hidden_times_unembedding(name):
  policy = tiny.make(name)
  base, adapter = tiny.weights(policy)
  h = jnp.asarray(np.random.default_rng(6).normal(size=(2, 3, 32)), jnp.float32)
  table = policy.unembedding(base)
  assert table.shape == (32, policy.vocab_size)
  logits = policy.logits(policy.merge(base, adapter), h)
  np.testing.assert_allclose(
    logits, np.einsum("btd,dv->btv", h, table), rtol=1e-4, atol=1e-5
  )


def test_bfloat16_logits_are_accumulated_in_float32():
  policy = tiny.make(compute_dtype="bfloat16")
  base, _ = tiny.weights(policy)
  h = jnp.asarray(np.random.default_rng(7).normal(size=(4, 32)), jnp.bfloat16)
  table = np.asarray(policy.unembedding(base), np.float32)
  logits = policy.logits(policy.merge(base, None), h)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(
    logits, np.asarray(h, np.float32) @ table, rtol=1e-5, atol=1e-5
  )


def test_gradients_are_float32_where_activations_are_bfloat16():
  policy = tiny.make(compute_dtype="bfloat16")
  base, adapter = tiny.weights(policy)
  row = tiny.row(np.random.default_rng(8), 96, [6])

  @jax.jit
  @jax.grad
  def run(base):
    return policy.hidden(base, adapter, *row).astype(jnp.float32).sum()

  gradient = run(base)
  assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def test_a_fresh_model_guesses():
  policy = tiny.make("tiny-llama")
  base = _fresh("tiny-llama")
  row = tiny.row(np.random.default_rng(9), 96, [64])

  @jax.jit
  def score(base):
    h = policy.hidden(base, None, *row)
    return jax.nn.log_softmax(policy.logits(policy.merge(base, None), h))

  logprobs = score(base)
  assert abs(float(-logprobs.mean()) - np.log(96)) < 1.0
  assert {x.dtype for x in jax.tree.leaves(base)} == {jnp.dtype("float32")}


def test_no_two_layers_start_alike():
  base = _fresh("tiny-llama")
  for target in tiny.ALL:
    kernel = base["layers"][target]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])


@pytest.mark.parametrize(
  ("name", "published"),
  {
    "qwen2.5-0.5b": 0.494e9,
    "qwen2.5-1.5b": 1.544e9,
    "qwen2.5-3b": 3.086e9,
    "qwen2.5-7b": 7.616e9,
    "qwen3-0.6b": 0.596e9,
    "qwen3-1.7b": 1.72e9,
    "qwen3-4b": 4.02e9,
    "qwen3-8b": 8.19e9,
    "llama-3.2-1b": 1.236e9,
    "llama-3.2-3b": 3.213e9,
    "smollm2-135m": 134.5e6,
    "smollm2-360m": 361.8e6,
    "smollm2-1.7b": 1.711e9,
  }.items(),
)
def test_presets_have_the_published_number_of_parameters(name, published):
  assert abs(_count(name) / published - 1) < 0.003


def test_tiny_presets_are_tiny():
  for name in tiny.NAMES:
    assert _count(name) < 1e5
  assert 1e5 < _count("small-arithmetic") < 1e6


def test_presets_are_static():
  assert len({hash(presets.get(name)) for name in presets.PRESETS}) == len(
    presets.PRESETS
  )


def test_an_unknown_preset_is_answered_with_the_choices():
  with pytest.raises(errors.ConfigError, match=r"qwen2\.5-3b.*got 'qwen-9b'"):
    presets.get("qwen-9b")


def test_an_unknown_remat_is_answered_with_the_choices():
  with pytest.raises(errors.ConfigError, match=r"none.*everything.*'some'"):
    tiny.make(remat="some")


@functools.cache
def _fresh(name):
  return jax.jit(tiny.make(name).init)(jax.random.key(0))


def _count(name):
  architecture = presets.get(name)
  shapes = jax.eval_shape(
    functools.partial(transformer.init, architecture=architecture),
    jax.random.key(0),
  )
  return sum(x.size for x in jax.tree.leaves(shapes))


def test_equal_arguments_give_the_same_functions():
  """A compiled program knows its policy by them."""
  assert tiny.make(remat="none") == tiny.make(remat="none")
  assert tiny.make(remat="none") != tiny.make(remat="everything")
