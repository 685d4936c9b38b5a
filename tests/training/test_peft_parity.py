"""Training LoRA factors equals PEFT's on torch: gradients, and 20 updates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import config
from bilevel_jax.methods import accumulation, contract, terms
from bilevel_jax.models import lora
from bilevel_jax.objectives import weighting
from bilevel_jax.rollout import assemble, packing
from bilevel_jax.training import learner
from bilevel_jax.types import Demonstration, StepBatch
from bilevel_jax.weights import huggingface
from tests.models import tiny
from tests.models.test_parity import SIZES

pytestmark = [
  pytest.mark.parity,
  # PEFT asks transformers about checkpointing by an older name.
  pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
]
torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft", reason="needs the extra `parity`")

SPEC = lora.Spec(rank=4, alpha=8.0, targets=("all-linear",))
RATE, DECAY = 1e-3, 0.1
LENGTHS = ((5, 9), (3, 20), (8, 4), (2, 13))  # prompts and solutions


@pytest.fixture(params=["Llama", "Qwen2", "Qwen3"], scope="module")
def models(request, tmp_path_factory):
  """(PEFT's model, our policy over its base, our factors)."""
  settings = getattr(transformers, f"{request.param}Config")(
    **SIZES, head_dim=8, tie_word_embeddings=request.param != "Llama"
  )
  torch.manual_seed(0)
  plain = getattr(transformers, f"{request.param}ForCausalLM")(settings)
  directory = tmp_path_factory.mktemp("base")
  plain.save_pretrained(directory)
  reference = peft.get_peft_model(
    plain,
    peft.LoraConfig(
      task_type="CAUSAL_LM",
      r=SPEC.rank,
      lora_alpha=SPEC.alpha,
      target_modules="all-linear",
    ),
  )
  with torch.no_grad():
    for name, x in reference.named_parameters():
      if "lora_B" in name:
        x.normal_(std=0.1)
  reference.save_pretrained(directory / "adapter")
  architecture = huggingface.read_architecture(directory)
  loaded = huggingface.load_adapter(directory / "adapter", architecture)
  assert loaded.spec == SPEC
  policy = tiny.make(architecture, adapter=None, trained=SPEC)
  base = huggingface.load_base(directory, architecture)
  return reference, policy.over(base), loaded.adapter


def _demonstrations():
  rng = np.random.default_rng(0)
  draw = lambda n: rng.integers(1, 96, n).astype(np.int32)
  return [Demonstration(i, *map(draw, n)) for i, n in enumerate(LENGTHS)]


def _batch(packed):
  batch = assemble.demonstration_batch(_demonstrations(), weighting.token_mean)
  if not packed:
    return batch
  return packing.pack(batch, packing.Packing(micro_batch_tokens=48))


def _torch_loss(model):
  """The mean over solutions' tokens, of rows that are padded on the right."""
  batch = _batch(packed=False)
  labels = np.where(batch.weights > 0, batch.tokens, -100)
  as_ids = lambda x: torch.tensor(x, dtype=torch.int64)
  return model(
    input_ids=as_ids(batch.tokens),
    attention_mask=as_ids(batch.segment_ids),
    labels=as_ids(labels),
  ).loss


def _ours(model, value):
  """{target: {"A": [L, in, r], "B": [L, r, out]}} of PEFT's parameters."""
  found = {}
  for name, x in model.named_parameters():
    if "lora_" in name:
      parts = name.split(".")
      target, factor = parts[-4].removesuffix("_proj"), parts[-3][-1]
      layers = found.setdefault(target, {}).setdefault(factor, [])
      layers.append(value(x).detach().numpy().T)
  return jax.tree.map(np.stack, found, is_leaf=lambda x: isinstance(x, list))


def _assert_close(actual, expected, atol):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=0, atol=atol),
    actual,
    expected,
  )


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_gradients_of_the_factors_equal_peft_s(models, packed):
  reference, policy, factors = models
  reference.zero_grad()
  loss = _torch_loss(reference)
  loss.backward()
  gradient = accumulation.gradient(terms.sft_objective(policy, chunk=64))
  found = jax.jit(lambda factors, batch: gradient(factors, None, batch))(
    factors, _batch(packed)
  )
  np.testing.assert_allclose(found.loss, loss.item(), atol=1e-5)
  expected = _ours(reference, lambda x: x.grad)
  assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(expected))
  _assert_close(found.by_lower, expected, atol=1e-5)


def test_twenty_updates_equal_torch_s_loop(models):
  reference, policy, factors = models
  c = config.default_config()
  c.model.preset, c.data.questions.task = "tiny-llama", "arithmetic"
  c.model.train, c.method.name, c.steps = "adapter", "sft", 20
  c.optimizer.base.learning_rate = RATE
  c.optimizer.base.weight_decay = DECAY
  c.optimizer.base.clip_norm = 1.0
  method = learner.build_method(
    config.parse(c),
    policy,
    contract.DemonstrationGroups(members=np.zeros(len(LENGTHS), np.int32)),
  )
  update = jax.jit(method.update)
  state = jax.jit(method.init)(jax.tree.map(jnp.copy, factors), None)
  start = {k: v.clone() for k, v in reference.state_dict().items()}
  trained = [x for x in reference.parameters() if x.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY)
  batch = StepBatch(rl=None, sft=_batch(packed=True))
  for _ in range(20):
    state = update(state, batch).state
    optimizer.zero_grad()
    _torch_loss(reference).backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
  expected = _ours(reference, lambda x: x)
  reference.load_state_dict(start)
  moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), expected, factors)
  assert min(jax.tree.leaves(moved)) > 5e-3
  _assert_close(state.base, expected, atol=1e-4)
