"""Architectures: what distinguishes one Llama-type model from another."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
  """Llama 3.1's RoPE scaling: low frequencies are slowed by `factor`."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_positions: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
  """The sizes and switches of a decoder; hashable, so it can be static.

  Weights are nested dicts, layers stacked on axis 0, kernels [in, out]:

      embedding                                    [V, D]
      layers/{attention_norm, mlp_norm}/scale      [L, D]
      layers/{q, k, v, o, gate, up, down}/kernel   [L, in, out]
      layers/{q, k, v}/bias                        [L, out]  attention_bias
      layers/{q_norm, k_norm}/scale                [L, head_dim]  qk_norm
      final_norm/scale                             [D]
      head/kernel                                  [D, V]  untied only

  and an adapter is {target: {"A": [L, in, r], "B": [L, r, out]}}.
  """

  family: str  # llama, qwen2 or qwen3: Hugging Face's model_type
  vocab_size: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_width: int
  max_positions: int
  rope_theta: float = 10000.0
  rope_scaling: Llama3Scaling | None = None
  norm_eps: float = 1e-6
  tied_embeddings: bool = True
  attention_bias: bool = False
  qk_norm: bool = False
