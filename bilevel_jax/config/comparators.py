"""Settings of the methods that BRIDGE is compared with: a section each."""

import dataclasses
from typing import Literal

from bilevel_jax.config.fields import section, setting


@dataclasses.dataclass(frozen=True)
class SFTThenRL:
  sft_share: float = setting(
    0.5, "share of the steps that are of SFT", at_least=0, at_most=1
  )
  sft_learning_rate: float | None = setting(
    None, "peak of the SFT stage; default: the base's", at_least=0
  )
  reference: Literal["after_sft", "start"] = setting(
    "after_sft", "policy that the KL of the RL stage is taken to"
  )


@dataclasses.dataclass(frozen=True)
class Mixed:
  sft_weight: float = setting(
    1.0, "of the SFT loss, beside 1 for the RL loss", at_least=0
  )


@dataclasses.dataclass(frozen=True)
class Alternating:
  rl_steps: int = setting(1, "steps of RL in a row", at_least=1)
  sft_steps: int = setting(1, "steps of SFT after them", at_least=1)
  sft_learning_rate: float | None = setting(
    None, "peak of the SFT steps; default: the base's", at_least=0
  )


@dataclasses.dataclass(frozen=True)
class Chord:
  peak: float = setting(
    0.1, "mu after the warm-up: SFT's weight", at_least=0, at_most=1
  )
  valley: float = setting(0.1, "mu after the decay", at_least=0, at_most=1)
  warmup_updates: int = setting(0, "from 0 to the peak, linearly", at_least=0)
  decay_updates: int | None = setting(
    None, "from the peak to the valley; default: all that are left", at_least=1
  )
  token_weight: Literal["phi", "sft"] = setting(
    "phi", "p(1-p) on demonstration tokens, or what sft.token_weight says"
  )


@dataclasses.dataclass(frozen=True)
class GTA:
  sft_weight: float = setting(
    1.0, "of an SFT gradient that does not oppose RL's", at_least=0
  )


@dataclasses.dataclass(frozen=True)
class MetaGradient:
  start: float = setting(0.5, "first mu, SFT's weight", at_least=0, at_most=1)
  lowest: float = setting(0.05, "bound of mu", at_least=0, at_most=1)
  highest: float = setting(0.95, "bound of mu", at_least=0, at_most=1)
  rate: float = setting(
    0.02, "largest change of mu in an update: at a cosine of 1", at_least=0
  )


@dataclasses.dataclass(frozen=True)
class SASR:
  warmup_steps: int = setting(5, "steps of SFT before the gate", at_least=1)
  gamma: float = setting(
    1.0, "weight of the warm-up's gradient norm: high is more RL", at_least=0
  )


@dataclasses.dataclass(frozen=True)
class HPT:
  gate: float = setting(
    0.0, "share of right samples up to which a question goes to SFT", at_most=1
  )
  sft_weight: float = setting(1.0, "of its SFT loss, beside 1", at_least=0)


@dataclasses.dataclass(frozen=True)
class LUFFY:
  gamma: float = setting(0.1, "p at which a token weighs most", above=0)
  demonstration_reward: float = setting(1.0, "reward of a demonstration")


@dataclasses.dataclass(frozen=True)
class Shuffle:
  kept_share: float = setting(
    0.5,
    "share of a question's pairs of samples that is kept",
    at_least=0,
    at_most=1,
  )
  rounds: int = setting(8, "in which the pairs are drawn", at_least=1)
  power: float = setting(
    1.0, "of a pair's advantages in its chance to be drawn", at_least=0
  )


@dataclasses.dataclass(frozen=True)
class PrefixRFT:
  longest: float = setting(
    0.95, "most of a demonstration that is given", at_least=0, at_most=1
  )
  lowest: float = setting(
    0.0, "least of it, at the end of the run", at_least=0, at_most=1
  )
  top_share: float = setting(
    0.2,
    "share of the given tokens that is learned from, the most uncertain",
    at_least=0,
    at_most=1,
  )


@dataclasses.dataclass(frozen=True)
class ReLIFT:
  buffer: int = setting(
    16, "demonstrations of an SFT update (the code: 128)", at_least=1
  )
  sft_learning_rate: float | None = setting(
    None, "peak of the SFT updates; default: the base's", at_least=0
  )


@dataclasses.dataclass(frozen=True)
class TRAPO:
  sizes: tuple[int, ...] = setting(
    (4, 2, 1, 1), "samples of each micro-group, or their ratio"
  )
  shares: tuple[float, ...] = setting(
    (0.0, 0.2, 0.5, 1.0), "of the demonstration that each is given"
  )
  thresholds: tuple[float, ...] = setting(
    (-1.0, 0.5, 0.7, 0.9), "mean reward before it below which it is"
  )
  bound: float = setting(
    0.1, "a: p below which a given token weighs p / a", above=0, at_most=1
  )


@dataclasses.dataclass(frozen=True)
class UFT:
  pieces: int = setting(5, "most pieces of a hint", at_least=1)
  highest: float = setting(
    0.95, "probability of a piece at the start", at_least=0, at_most=1
  )
  lowest: float = setting(
    0.05, "probability of a piece when hints end", at_least=0, at_most=1
  )
  hinted_share: float = setting(
    0.6, "share of the steps that have hints", at_least=0, at_most=1
  )
  hint_weight: float = setting(1e-3, "of -log p on a hint", at_least=0)


@dataclasses.dataclass(frozen=True)
class Sections:
  """The sections, by the names of the methods."""

  sft_then_rl: SFTThenRL = section(SFTThenRL, "of the method sft_then_rl")
  mixed: Mixed = section(Mixed, "of the method mixed")
  alternating: Alternating = section(Alternating, "of the method alternating")
  chord: Chord = section(Chord, "of the method chord")
  gta: GTA = section(GTA, "of the method gta")
  meta_gradient: MetaGradient = section(
    MetaGradient, "of the method meta_gradient"
  )
  sasr: SASR = section(SASR, "of the method sasr")
  hpt: HPT = section(HPT, "of the method hpt")
  luffy: LUFFY = section(LUFFY, "of the method luffy")
  shuffle: Shuffle = section(Shuffle, "of the method shuffle")
  prefix_rft: PrefixRFT = section(PrefixRFT, "of the method prefix_rft")
  relift: ReLIFT = section(ReLIFT, "of the method relift")
  trapo: TRAPO = section(TRAPO, "of the method trapo")
  uft: UFT = section(UFT, "of the method uft")
