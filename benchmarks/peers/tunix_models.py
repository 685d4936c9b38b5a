"""google-tunix's model of a config.json, for its peers here."""

import importlib
import importlib.metadata
from typing import Any

import jax
from flax import nnx

# config.json's model_type -> (module of tunix.models, class)
_MODELS = {
  "llama": ("llama3", "Llama3"),
  "qwen2": ("qwen2", "Qwen2"),
  "qwen3": ("qwen3", "Qwen3"),
}


def make(
  fields: dict[str, Any], dtype: str, wrap=lambda model_class: model_class
) -> Any:
  """Returns a model with random weights.

  Args:
    fields: of a Hugging Face config.json.
    dtype: of the weights.
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
  model = wrap(getattr(models, name))(config, rngs=nnx.Rngs(0))
  weights = nnx.state(model, nnx.Param)
  nnx.update(model, jax.tree.map(lambda x: x.astype(dtype), weights))
  return model


def about(model: Any) -> dict[str, Any]:
  """Returns what a contestant says of itself."""
  versions = [importlib.metadata.version(n) for n in ("google-tunix", "jax")]
  weights = jax.tree.leaves(nnx.state(model, nnx.Param))
  return {
    "name": "google-tunix {} (jax {})".format(*versions),
    "device": jax.devices()[0].device_kind,
    "parameters": sum(x.size for x in weights),
  }
