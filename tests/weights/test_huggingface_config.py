"""What config.json says, and what of it is refused."""

import dataclasses
import json

import pytest

from bilevel_jax import errors
from bilevel_jax.models import presets
from bilevel_jax.weights import huggingface, huggingface_config
from tests.weights import directories

LLAMA = directories.LLAMA


@pytest.fixture
def exported(tmp_path):
  huggingface.export(tmp_path / "hf", LLAMA, directories.base(LLAMA))
  return tmp_path / "hf"


def test_both_spellings_of_rope_are_read(tmp_path):
  architecture = directories.FAMILIES["llama3"]
  huggingface.export(tmp_path, architecture, directories.base(architecture))
  path = tmp_path / "config.json"
  old = json.loads(path.read_text())
  rope = old["rope_scaling"]
  for spelling in (
    {"rope_parameters": rope | {"rope_theta": 500000.0}},  # transformers 5
    {"rope_scaling": rope, "rope_theta": 500000},
    {  # before 4.43
      "rope_scaling": {"type": "llama3", **rope, "rope_type": "llama3"},
      "rope_theta": 500000,
    },
  ):
    bare = {k: v for k, v in old.items() if not k.startswith("rope")}
    path.write_text(json.dumps(bare | spelling))
    assert huggingface.read_architecture(tmp_path) == architecture
  path.write_text(json.dumps(bare | {"rope_parameters": {"rope_theta": 7.0}}))
  plain = huggingface.read_architecture(tmp_path)
  assert (plain.rope_theta, plain.rope_scaling) == (7.0, None)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_has_the_switches_of_its_family(name, tmp_path):
  architecture = presets.get(name)
  fields = huggingface_config.config_fields(architecture, "float32", {})
  (tmp_path / "config.json").write_text(json.dumps(fields))
  assert huggingface.read_architecture(tmp_path) == architecture


def test_fields_left_out_have_the_defaults_of_transformers(exported):
  path = exported / "config.json"
  fields = json.loads(path.read_text())
  for name in ("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta"):
    del fields[name]
  path.write_text(json.dumps(fields | {"tie_word_embeddings": False}))
  architecture = huggingface.read_architecture(exported)
  assert architecture == dataclasses.replace(
    LLAMA,
    kv_heads=4,
    head_dim=4,
    norm_eps=1e-6,
    rope_theta=10000.0,
    tied_embeddings=False,
  )


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"model_type": "gpt2"}, "one of llama, qwen2, qwen3, got 'gpt2'"),
    ({"model_type": None}, "one of llama, qwen2, qwen3, got None"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    ({"mlp_bias": True}, "mlp_bias True is not supported"),
    ({"attention_bias": True}, "attention_bias True is not supported"),
    ({"use_sliding_window": True}, "use_sliding_window True is not"),
    (
      {"layer_types": ["full_attention", "sliding_attention"]},
      r"layer_types \['sliding_attention'\] is not supported",
    ),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not"),
    ({"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4}"),
    (
      {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
      "rope_scaling of type 'yarn' is not supported",
    ),
    (
      {"rope_scaling": {"type": "linear", "factor": 4.0}},
      "rope_scaling of type 'linear' is not supported",
    ),
    (
      {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}},
      "rope_scaling.low_freq_factor must be a positive number, got None",
    ),
    (
      {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
      "rope_parameters of type None is not supported",
    ),
    (
      {
        "rope_parameters": {
          "rope_type": "default",
          "partial_rotary_factor": 0.25,
        }
      },
      "partial_rotary_factor 0.25 is not supported",
    ),
    ({"hidden_size": None}, "hidden_size must be a positive integer, got None"),
    ({"vocab_size": "many"}, "vocab_size must be a positive integer, got 'ma"),
    ({"num_key_value_heads": 3}, "divide num_attention_heads 4, got 3"),
    ({"head_dim": 5}, "head_dim must be even, got 5"),
    ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number, got 0"),
  ],
)
def test_a_config_we_cannot_run_is_refused_by_name(changes, sentence, exported):
  directories.edit_json(exported / "config.json", **changes)
  with pytest.raises(errors.ConfigError, match=sentence):
    huggingface.read_architecture(exported)


@pytest.mark.parametrize(
  ("text", "sentence"),
  [
    ("{", "config.json is not JSON"),
    ("[1]", r"config.json must be a JSON object, got \[1\]"),
    (None, "has no config.json"),
  ],
)
def test_a_config_that_is_no_config_is_refused(text, sentence, tmp_path):
  if text is not None:
    (tmp_path / "config.json").write_text(text)
  with pytest.raises(errors.ConfigError, match=sentence):
    huggingface.read_architecture(tmp_path)
