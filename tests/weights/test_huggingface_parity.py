"""What we write and read means the same to transformers and to PEFT."""

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax.models import lora
from bilevel_jax.weights import huggingface, peft_files
from tests.models import tiny
from tests.weights import directories

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

TOKENS = np.random.default_rng(2).integers(0, 52, (2, 120))
SCALE = 2.0  # of the adapters of `tiny.make`


def assert_same_logits(architecture, base, adapter, model):
  policy = tiny.make(architecture)
  columns = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
  hidden = policy.hidden(
    base, adapter, jnp.array(TOKENS), columns, jnp.ones_like(columns)
  )
  with torch.no_grad():
    theirs = model(torch.tensor(TOKENS)).logits.numpy()
  ours = hidden @ policy.unembedding(base)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@directories.EVERY
def test_transformers_loads_our_export_and_agrees(architecture, tmp_path):
  base = directories.base(architecture)
  adapter = directories.adapter(architecture)
  huggingface.export(
    tmp_path, architecture, base, adapter, SCALE, shard_bytes=9000
  )
  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not any(report.values()), report
  assert_same_logits(architecture, base, adapter, model)


@directories.EVERY
def test_we_load_what_transformers_writes_and_agree(architecture, tmp_path):
  base = directories.base(architecture)
  huggingface.export(tmp_path / "a", architecture, base)
  settings = transformers.AutoConfig.from_pretrained(tmp_path / "a")
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(settings)
  model.save_pretrained(tmp_path / "b", max_shard_size="9KB")
  assert huggingface.read_architecture(tmp_path / "b") == architecture
  loaded = huggingface.load_base(tmp_path / "b", architecture)
  assert_same_logits(architecture, loaded, None, model)


# PEFT asks transformers about checkpointing by an older name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_peft_loads_our_adapter_and_agrees(tmp_path):
  peft = pytest.importorskip("peft")
  architecture = directories.LLAMA
  base = directories.base(architecture)
  adapter = directories.adapter(architecture)
  huggingface.export(tmp_path / "base", architecture, base)
  huggingface.export_adapter(
    tmp_path / "adapter",
    architecture,
    adapter,
    lora.Spec(rank=4, alpha=8.0, targets=tiny.ALL),
    base=peft_files.Base(str(tmp_path / "base")),
  )
  model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
  assert_same_logits(architecture, base, adapter, model)
