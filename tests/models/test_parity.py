"""Logits of every family equal transformers' on torch, in float32."""

import jax
import numpy as np
import pytest

from bilevel_jax.weights import huggingface
from tests.models import tiny

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers")

SIZES = {
  "vocab_size": 96,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 1024,
  "attn_implementation": "eager",
}
# The context of before the scaling is short: most frequencies are scaled.
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 10000.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 128,
}
CASES = {
  "llama-tied": ("Llama", {"tie_word_embeddings": True}),
  "llama-untied": ("Llama", {"tie_word_embeddings": False}),
  "llama3-scaling": (
    "Llama",
    {"rope_parameters": LLAMA3, "head_dim": 16, "tie_word_embeddings": True},
  ),
  "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
  "qwen2-untied": ("Qwen2", {"tie_word_embeddings": False}),
  "qwen3-tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
  "qwen3-untied": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": False}),
}
LENGTHS, COLUMNS = (520, 397), 520


@pytest.fixture(params=CASES, scope="module")
def models(request, tmp_path_factory):
  """(the reference, our policy, our base), of one family."""
  family, changes = CASES[request.param]
  settings = getattr(transformers, f"{family}Config")(**(SIZES | changes))
  torch.manual_seed(0)
  reference = getattr(transformers, f"{family}ForCausalLM")(settings).eval()
  with torch.no_grad():  # biases that are not 0, scales that are not 1
    for name, x in reference.named_parameters():
      spread = 0.2 if x.ndim == 1 else x.shape[-1] ** -0.5
      x.copy_(torch.randn_like(x) * spread + float("norm" in name))
  directory = tmp_path_factory.mktemp("reference")
  reference.save_pretrained(directory)
  architecture = huggingface.read_architecture(directory)
  policy = tiny.make(architecture)
  return reference, policy, huggingface.load_base(directory, architecture)


def test_logits_equal_transformers_with_left_padding(models):
  reference, policy, base = models
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 96, (2, COLUMNS)).astype(np.int32)
  columns = np.arange(COLUMNS, dtype=np.int32)[None]
  first = COLUMNS - np.asarray(LENGTHS, np.int32)[:, None]
  mask = (columns >= first).astype(np.int32)
  positions = np.maximum(columns - first, 0)

  with torch.no_grad():
    expected = reference(
      input_ids=torch.tensor(tokens, dtype=torch.int64),
      attention_mask=torch.tensor(mask),
      position_ids=torch.tensor(positions, dtype=torch.int64),
    ).logits.numpy()

  @jax.jit
  def learner(base):
    hidden = policy.hidden(base, None, tokens, positions, mask)
    return policy.logits(policy.merge(base, None), hidden)

  @jax.jit
  def sampler(base):
    weights, cache = policy.merge(base, None), policy.init_cache(2, COLUMNS)
    hidden, _ = policy.extend(weights, cache, tokens, positions, 0, first[:, 0])
    return policy.logits(weights, hidden)

  real = mask == 1
  assert np.std(expected[real]) > 0.5
  for ours in (learner, sampler):
    np.testing.assert_allclose(ours(base)[real], expected[real], atol=1e-4)
