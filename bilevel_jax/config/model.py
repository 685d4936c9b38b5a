"""Settings of the language model and of its LoRA factors."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import jax

from bilevel_jax.fields import setting
from bilevel_jax.models import lora, policy


@dataclasses.dataclass(frozen=True)
class Model:
  weights: str | None = setting(
    None, "Hugging Face directory, hub id, or .gguf file to start from"
  )
  preset: str | None = setting(
    None, "architecture to start from with random weights, if no `weights`"
  )
  revision: str | None = setting(None, "hub revision of `weights`")
  train: Literal["all", "adapter"] = setting(
    "all",
    "what is trained: every weight, or LoRA factors (adapter.*) over a base "
    "that stays as it is",
  )
  attention: Literal["auto", "xla", "chunked", "cudnn"] = setting(
    "auto", "attention kernel"
  )
  base_dtype: Literal["float32", "bfloat16", "int8", "nf4"] = setting(
    "float32",
    "with model.train=adapter, how the frozen base is kept; int8 and nf4: the "
    "layers' matrices in blocks with a scale each, all else in bfloat16",
  )
  compute_dtype: Literal["auto", "float32", "bfloat16"] = setting(
    "auto",
    "dtype of activations, of merged weights and of the KV cache; auto: "
    "bfloat16 where the device multiplies it, else float32, as on CPUs and on "
    "GPUs before Ampere",
  )
  remat: Literal["none", "attention_and_mlp", "everything", "offload"] = (
    setting(
      "everything",
      "what a layer recomputes in the backward pass; offload: as everything, "
      "with the layers' inputs in the host's memory",
    )
  )
  logprob_chunk: int = setting(
    1024, "tokens whose logits are in memory at once", at_least=1
  )

  @property
  def dtype(self) -> str:
    """The compute dtype; `auto` asks the first device."""
    if self.compute_dtype != "auto":
      return self.compute_dtype
    return policy.dtype_of(jax.devices()[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter(lora.Spec):
  """LoRA factors: the upper level's, or what is trained over a frozen base."""

  weights: str | None = setting(
    None,
    "with model.train=adapter, the PEFT adapter to go on from: its directory, "
    "or a run that left one; default: a fresh one",
  )
  upper_targets: tuple[str, ...] = setting(
    (),
    "with model.train=adapter, the matrices of the upper level's own adapter, "
    "for methods that have one; adapter.targets must leave them",
  )

  def __post_init__(self) -> None:
    """Makes one spelling of PEFT's names and ours."""
    super().__post_init__()
    names = lora.target_names(self.upper_targets)
    object.__setattr__(self, "upper_targets", names)

  @property
  def spec(self) -> lora.Spec:
    """The factors of `targets`."""
    return self._of(self.targets)

  def trained(self, train: str) -> lora.Spec | None:
    """Returns the factors that are trained in place of the base, if any."""
    return self.spec if train == "adapter" else None

  def upper(self, train: str) -> lora.Spec | None:
    """Returns the upper level's factors; None: it can have none."""
    if train == "all":
      return self.spec
    return self._of(self.upper_targets) if self.upper_targets else None

  def _of(self, targets: tuple[str, ...]) -> lora.Spec:
    return lora.Spec(rank=self.rank, alpha=self.alpha, targets=targets)


def broken_rules(config: Any) -> Iterator[str]:
  """Yields a sentence for each rule of what is trained that is broken."""
  adapter = config.adapter
  if config.model.train == "all":
    for name in ("weights", "upper_targets"):
      if value := getattr(adapter, name):
        yield (
          f"adapter.{name} is for model.train=adapter, got {value!r} with all"
        )
    if config.model.base_dtype != "float32":
      yield (
        "model.base_dtype must be float32 with model.train=all, since float32 "
        f"is what is trained, got {config.model.base_dtype}"
      )
    return
  if both := [t for t in adapter.upper_targets if t in adapter.targets]:
    yield (
      "adapter.upper_targets and adapter.targets must share no matrix: two "
      "adapters of a matrix add up to one, and the lower level takes back "
      f"what the upper one does, got {', '.join(both)} in both"
    )
  model = config.model
  if model.base_dtype in ("int8", "nf4") and model.remat == "none":
    yield (
      f"model.remat must not be none with model.base_dtype={model.base_dtype}: "
      "each layer that is expanded would be kept for the backward pass"
    )
  if config.optimizer.base.name == "muon":
    yield (
      "optimizer.base.name must be adamw or sgd with model.train=adapter, "
      "which moves LoRA factors and no whole matrix, got muon"
    )
