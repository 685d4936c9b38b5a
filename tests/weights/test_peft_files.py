"""The adapter in PEFT's format."""

import json

import pytest
import safetensors.numpy

from bilevel_jax import errors
from bilevel_jax.models import lora
from bilevel_jax.weights import huggingface, peft_files
from tests.weights import directories

LLAMA = directories.LLAMA


def export_adapter(directory, adapter, targets):
  return huggingface.export_adapter(
    directory,
    LLAMA,
    adapter,
    lora.Spec(rank=4, alpha=8.0, targets=targets),
    base=peft_files.Base("some/base"),
  )


def test_adapter_has_the_names_and_orientation_of_peft(tmp_path):
  adapter = directories.adapter(LLAMA, ("q", "down"))
  export_adapter(tmp_path, adapter, ("q", "down"))
  tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
  expected = {}
  for i in range(LLAMA.layers):
    for target, module in {
      "q": "self_attn.q_proj",
      "down": "mlp.down_proj",
    }.items():
      start = f"base_model.model.model.layers.{i}.{module}."
      expected[f"{start}lora_A.weight"] = adapter[target]["A"][i].T
      expected[f"{start}lora_B.weight"] = adapter[target]["B"][i].T
  directories.assert_same_bits(tensors, expected)
  fields = json.loads((tmp_path / "adapter_config.json").read_text())
  assert (fields["r"], fields["lora_alpha"]) == (4, 8.0)
  assert fields["target_modules"] == ["q_proj", "down_proj"]
  assert fields["base_model_name_or_path"] == "some/base"


def test_adapter_export_and_import_is_bitwise(tmp_path):
  targets = ("q", "k", "v", "o", "gate", "up", "down")
  adapter = directories.adapter(LLAMA, targets)
  loaded = huggingface.load_adapter(
    export_adapter(tmp_path, adapter, targets), LLAMA
  )
  directories.assert_same_bits(loaded.adapter, adapter)
  spec = lora.Spec(rank=4, alpha=8.0, targets=targets)
  assert loaded[1:] == (spec, "some/base")


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"use_dora": True}, "use_dora True is not supported, only False"),
    ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported, only 'LORA'"),
    ({"rank_pattern": {"q": 4}}, "rank_pattern {'q': 4} is not supported"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supp"),
    (
      {"alora_invocation_tokens": [1]},
      "alora_invocation_tokens .* is not supp",
    ),
    (
      {"use_future": True},
      "use_future is not known and might change the model",
    ),
    ({"r": None}, "r must be a positive integer, got None"),
    ({"r": 4.5}, "r must be a positive integer, got 4.5"),
    ({"r": 10**12}, r"must have shape \[1000000000000, 16\], got \[4, 16\]"),
    ({"lora_alpha": float("nan")}, "lora_alpha must be a positive number"),
    ({"r": 2}, r"lora_A.weight must have shape \[2, 16\], got \[4, 16\]"),
  ],
)
def test_an_adapter_we_cannot_run_is_refused_by_name(
  changes, sentence, tmp_path
):
  export_adapter(tmp_path, directories.adapter(LLAMA, ("q",)), ("q",))
  directories.edit_json(tmp_path / "adapter_config.json", **changes)
  with pytest.raises(errors.ConfigError, match=sentence):
    huggingface.load_adapter(tmp_path, LLAMA)


def test_fields_that_change_nothing_are_let_be(tmp_path):
  export_adapter(tmp_path, directories.adapter(LLAMA, ("q",)), ("q",))
  directories.edit_json(
    tmp_path / "adapter_config.json",
    init_lora_weights=True,
    lora_dropout=0.1,
    loftq_config={},
    use_future=False,
    peft_version="0.19",
  )
  assert huggingface.load_adapter(tmp_path, LLAMA).spec.rank == 4


def test_half_an_adapter_is_refused(tmp_path):
  export_adapter(tmp_path, directories.adapter(LLAMA, ("q",)), ("q",))
  (tmp_path / "adapter_model.safetensors").unlink()
  with pytest.raises(errors.ConfigError, match="has no adapter_model"):
    huggingface.load_adapter(tmp_path, LLAMA)
