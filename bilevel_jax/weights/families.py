"""The families of models that are known: all in which their files differ.

A new family is a row here, and the switches of `presets.Architecture` that its
mathematics needs.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Family(NamedTuple):
  """A family as transformers and llama.cpp know it; its name: `model_type`."""

  transformers_class: str
  default_positions: int
  """Where config.json leaves max_position_embeddings out."""
  default_head_dim: int | None = None
  """Where config.json leaves head_dim out; None: the width / the heads."""
  attention_bias: bool = False
  """Whether q, k and v have biases."""
  qk_norm: bool = False
  """Whether queries and keys are normed."""
  interleaved_gguf: bool = False
  """Whether llama.cpp turns neighbours of a head, where we turn halves."""
  gguf_tokenizers: Mapping[str, str] = {}
  """tokenizer.ggml.pre -> how text is cut, a key of `gguf_tokenizer.CUTS`."""


FAMILIES = {
  "llama": Family(
    "LlamaForCausalLM",
    default_positions=2048,
    interleaved_gguf=True,
    gguf_tokenizers={
      "smollm": "digits",
      "gpt-2": "gpt2",
      "llama-bpe": "llama3",
      "llama3": "llama3",
      "llama-v3": "llama3",
    },
  ),
  "qwen2": Family(
    "Qwen2ForCausalLM",
    default_positions=32768,
    attention_bias=True,
    gguf_tokenizers={"qwen2": "qwen", "deepseek-r1-qwen": "qwen"},
  ),
  "qwen3": Family(
    "Qwen3ForCausalLM",
    default_positions=32768,
    default_head_dim=128,
    qk_norm=True,
    gguf_tokenizers={"qwen2": "qwen"},
  ),
}
