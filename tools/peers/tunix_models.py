"""google-tunix's model of a config.json, for its peers here."""

import importlib
from typing import Any

from flax import nnx

# config.json's model_type -> (module of tunix.models, class)
_MODELS = {
  "llama": ("llama3", "Llama3"),
  "qwen2": ("qwen2", "Qwen2"),
  "qwen3": ("qwen3", "Qwen3"),
}


def make(fields: dict[str, Any], wrap=lambda model_class: model_class) -> Any:
  """Returns a model with random weights.

  Args:
    fields: of a Hugging Face config.json.
    wrap: class -> class to make it of.
  """
  module, name = _MODELS[fields["model_type"]]
  models = importlib.import_module(f"tunix.models.{module}.model")
  tied = "weight_tying" if module == "llama3" else "use_tied_embedding"
  config = models.ModelConfig(
    num_layers=fields["num_hidden_layers"],
    vocab_size=fields["vocab_size"],
    embed_dim=fields["hidden_size"],
    hidden_dim=fields["intermediate_size"],
    num_heads=fields["num_attention_heads"],
    head_dim=fields["head_dim"],
    num_kv_heads=fields["num_key_value_heads"],
    rope_theta=int(fields["rope_theta"]),
    norm_eps=fields["rms_norm_eps"],
    **{tied: fields["tie_word_embeddings"]},
  )
  return wrap(getattr(models, name))(config, rngs=nnx.Rngs(0))
