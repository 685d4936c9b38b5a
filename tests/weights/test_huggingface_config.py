"""What config.json says, and what of it is refused."""

import dataclasses
import json

import pytest
import transformers

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
      r"layer_types must be 'full_attention' for each of num_hidden_layers 3, "
      r"got \['full_attention', 'sliding_attention'\]",
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
      "rope_parameters.full_attention is not known and might change the model",
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
    ({"rms_norm_eps": float("inf")}, "must be a positive number, got inf"),
    ({"rms_norm_eps": True}, "must be a positive number, got True"),
    ({"rope_theta": 10**400}, "rope_theta must be a positive number, got 1000"),
    ({"layer_types": "full_attention"}, "got 'full_attention'"),
    ({"layer_types": [{}, {}, {}]}, r"got \[\{\}, \{\}, \{\}\]"),
    ({"is_causal": False}, "is_causal is not known .*, got False"),
    ({"dual_chunk_attention_config": {"chunk_size": 8}}, "is not known"),
    ({"architectures": ["MistralForCausalLM"]}, "got .'MistralForCausalLM'."),
    ({"hidden_size": 2, "head_dim": None}, "head_dim must be a positive"),
  ],
)
def test_a_config_we_cannot_run_is_refused_by_name(changes, sentence, exported):
  directories.edit_json(exported / "config.json", **changes)
  with pytest.raises(errors.ConfigError, match=sentence):
    huggingface.read_architecture(exported)


LLAMA3 = {
  "rope_type": "llama3",
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
PLAIN = {"rope_type": "default", "rope_theta": 5000.0}


@pytest.mark.parametrize(
  "changes",
  [
    {"rope_scaling": {}, "rope_parameters": PLAIN},
    {"rope_scaling": None, "rope_parameters": PLAIN},
    {"rope_scaling": PLAIN, "rope_parameters": PLAIN},
    {"rope_theta": None, "rope_parameters": PLAIN},
    {"rope_theta": 5000, "rope_scaling": LLAMA3},
    {"rope_theta": 5000.0, "rope_scaling": LLAMA3 | {"type": "llama3"}},
    {"rope_parameters": {"rope_theta": 5000, "partial_rotary_factor": 1.0}},
    {"num_key_value_heads": None},
    {"head_dim": None, "layer_types": ["full_attention"] * 3},
    {"tie_word_embeddings": False, "a_field_of_tomorrow": None},
  ],
)
def test_two_statements_are_read_as_transformers_reads_them(changes, exported):
  path = exported / "config.json"
  fields = json.loads(path.read_text())
  del fields["rope_theta"]  # so that each case says what theta is
  path.write_text(json.dumps(fields | changes))
  theirs = transformers.AutoConfig.from_pretrained(exported)
  rope = theirs.rope_parameters
  scaling = rope["rope_type"] == "llama3"
  assert huggingface.read_architecture(exported) == dataclasses.replace(
    LLAMA,
    kv_heads=theirs.num_key_value_heads,
    head_dim=theirs.head_dim,
    tied_embeddings=theirs.tie_word_embeddings,
    rope_theta=float(rope["rope_theta"]),
    rope_scaling=presets.Llama3Scaling(
      factor=rope["factor"],
      low_freq_factor=rope["low_freq_factor"],
      high_freq_factor=rope["high_freq_factor"],
      original_max_positions=rope["original_max_position_embeddings"],
    )
    if scaling
    else None,
  )


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    (  # transformers 5 reads the first, and so does 4
      {"rope_scaling": LLAMA3, "rope_parameters": PLAIN},
      "rope_scaling and rope_parameters must say the same",
    ),
    (
      {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        "rope_parameters": PLAIN,
      },
      "rope_scaling of type 'yarn' is not supported",
    ),
    (
      {"rope_scaling": {"rope_type": "default"}, "rope_parameters": LLAMA3},
      "rope_scaling and rope_parameters must say the same",
    ),
    (
      {"rope_parameters": PLAIN | {"rope_theta": 10000.0}, "rope_theta": 5.0},
      "rope_theta must be the rope_theta beside it, 5.0, got 10000.0",
    ),
    (
      {"rope_parameters": PLAIN | {"rope_theta": None}, "rope_theta": 5.0},
      "rope_theta must be a positive number, got None",
    ),
    ({"rope_theta": None}, "rope_theta must be a positive number, got None"),
    (
      {"rope_scaling": LLAMA3 | {"type": "default"}},
      "type must be the rope_type beside it, 'llama3', got 'default'",
    ),
    (
      {"rope_scaling": {"rope_type": "default", "factor": 4.0}},
      "rope_scaling.factor is not known",
    ),
    (
      {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8.5}},
      "original_max_position_embeddings must be a positive integer, got 8.5",
    ),
    (
      {"original_max_position_embeddings": 64},
      "original_max_position_embeddings is not known",
    ),
    ({"tie_word_embeddings": "false"}, "must be true or false, got 'false'"),
    ({"tie_word_embeddings": None}, "must be true or false, got None"),
    ({"tie_word_embeddings": 1}, "must be true or false, got 1"),
    ({"rms_norm_eps": None}, "rms_norm_eps must be a positive number, got Non"),
    ({"max_position_embeddings": None}, "must be a positive integer, got None"),
    ({"hidden_act": None}, "hidden_act None is not supported"),
    ({"mlp_bias": None}, "mlp_bias None is not supported"),
    ({"mlp_bias": "false"}, "mlp_bias 'false' is not supported"),
    ({"layer_types": ["full_attention"]}, "each of num_hidden_layers 3, got"),
    ({"num_hidden_layers": 10**9, "layer_types": []}, r"1000000000, got \[\]"),
  ],
)
def test_a_contradiction_is_refused(changes, sentence, exported):
  path = exported / "config.json"
  fields = json.loads(path.read_text())
  del fields["rope_theta"]
  path.write_text(json.dumps(fields | changes))
  with pytest.raises(errors.ConfigError, match=sentence):
    huggingface.read_architecture(exported)


@pytest.mark.parametrize(
  ("text", "sentence"),
  [
    ("{", "config.json is not JSON"),
    ("[1]", "config.json must be a JSON object, got a list"),
    ("\xff", "config.json is not JSON: .* can't decode byte 0xff"),
    ('{"a":' * 101 + "1" + "}" * 101, "nested at most 100 levels deep"),
    ('{"a":' * 10**5 + "1" + "}" * 10**5, "nested at most 100 levels deep"),
    ("[" * 10**5 + "]" * 10**5, "nested at most 100 levels deep"),
    ('{"vocab_size": 1' + "0" * 5000 + "}", "config.json is not JSON"),
    (None, "has no config.json"),
  ],
)
def test_a_config_that_is_no_config_is_refused(text, sentence, tmp_path):
  if text is not None:
    (tmp_path / "config.json").write_text(text, "latin-1")
  with pytest.raises(errors.ConfigError, match=sentence):
    huggingface.read_architecture(tmp_path)
