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
  adapter: bool = setting(
    False, "whether the adapter descends it, too, with its own optimiser"
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
  guess_end: str | None = setting(
    None, "text that ends a guess, SFT's alone; None: there are no guesses"
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
class Expert:
  weights: str | None = setting(
    None,
    "directory, run, hub id or .gguf file of the other model that kdrl (the "
    "teacher) and pear (what wrote the demonstrations) ask; default: the "
    "weights that the run begins with",
  )
  revision: str | None = setting(None, "hub revision of `weights`")


@dataclasses.dataclass(frozen=True)
class SRFT:
  sft_weight: float = setting(
    0.5, "of a demonstration's SFT term, before the entropy", at_least=0
  )
  sft_exponent: Literal["paper", "code"] = setting(
    "paper", "of that entropy: exp(-H), or exp(+H) as in the official code"
  )
  right_weight: float = setting(
    0.1, "of a right sample, before exp(+H); a wrong one has -1", at_least=0
  )
  demonstration_reward: float = setting(1.0, "reward of a demonstration")


@dataclasses.dataclass(frozen=True)
class PEAR:
  form: Literal["token", "block", "sequence"] = setting(
    "token", "what follows a token: tokens, blocks, or the whole sequence"
  )
  gamma: float = setting(
    0.999, "discount of each token that follows", above=0, at_most=1
  )
  block: int = setting(4, "tokens of a block", at_least=1)
  lowest_ratio: float = setting(
    -0.08, "bound of a token's log-ratio to what wrote it, nats", at_most=0
  )
  highest_ratio: float = setting(0.3, "bound of it, nats", at_least=0)
  lowest: float = setting(-10.0, "bound of a weight's log", at_most=0)
  highest: float = setting(5.0, "bound of a weight's log", at_least=0)


@dataclasses.dataclass(frozen=True)
class KDRL:
  start: float = setting(5e-3, "first beta, the teacher's weight", at_least=0)
  end: float = setting(1e-3, "last beta; `start`: constant", at_least=0)
  decay: float = setting(5e-5, "that beta loses in an update", at_least=0)
  estimate: Literal["k2", "k3"] = setting(
    "k2", "of the KL to the teacher; only k2 has the KL's gradient as a loss"
  )
  listens: Literal["all", "wrong", "unsolved"] = setting(
    "all",
    "samples that hear the teacher: all, those that are wrong, or those of "
    "questions without a right one",
  )


@dataclasses.dataclass(frozen=True)
class ImplicitReward:
  sft_rate: float = setting(
    0.25, "what SFT's learning rate is multiplied by", above=0
  )
  beta: float = setting(0.1, "of DPO: how firmly it prefers", above=0)


@dataclasses.dataclass(frozen=True)
class Staged:
  lengths: tuple[float, ...] = setting(
    (0.5, 0.75, 1.0),
    "of each stage of RL: a sample's share of rollout.max_new_tokens",
  )
  highest_accuracy: tuple[float, ...] = setting(
    (1.0, 1.0, 0.375),
    "of each stage: share of right samples up to which a question counts",
  )
  unfiltered_stages: int = setting(
    1, "last stages in which truncated samples count", at_least=0
  )
  entropy: float = setting(0.3, "to aim at, nats a token", above=0)
  temperature: float = setting(1.0, "first of the samples", above=0)
  rate: float = setting(
    0.5, "of the temperature's logarithm, per nat that is missing", at_least=0
  )
  lowest_temperature: float = setting(0.6, "bound of it", above=0)
  highest_temperature: float = setting(1.2, "bound of it", above=0)


@dataclasses.dataclass(frozen=True)
class Interleaved:
  sft_learning_rate: float | None = setting(
    None, "peak of the SFT updates; default: the base's", at_least=0
  )


@dataclasses.dataclass(frozen=True)
class Progressive:
  guided_share: float = setting(
    0.5, "share of the steps that begin samples", at_least=0, at_most=1
  )
  sft_weight: float = setting(1.0, "of -log p on a beginning", at_least=0)


@dataclasses.dataclass(frozen=True)
class DataMix:
  demonstration_advantage: float = setting(
    1.0, "what a demonstration's token counts as", at_least=0
  )


@dataclasses.dataclass(frozen=True)
class Merge:
  sft_share: float = setting(
    0.5, "share of the steps that are of SFT", at_least=0, at_most=1
  )
  sft_learning_rate: float | None = setting(
    None, "peak of the SFT branch; default: the base's", at_least=0
  )
  rl_weight: float = setting(0.5, "of what RL changed")
  sft_weight: float = setting(0.5, "of what SFT changed")


@dataclasses.dataclass(frozen=True)
class NonDecoupling:
  first: Literal["sft", "rl"] = setting("sft", "what the first stage is of")
  first_share: float = setting(
    0.5,
    "share of the updates that are the first stage's",
    at_least=0,
    at_most=1,
  )


@dataclasses.dataclass(frozen=True)
class Sections:
  """The sections, by the names of the methods; `expert` serves several."""

  expert: Expert = section(Expert, "another model, which some methods ask")
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
  srft: SRFT = section(SRFT, "of the method srft")
  pear: PEAR = section(PEAR, "of the method pear")
  kdrl: KDRL = section(KDRL, "of the method kdrl")
  implicit_reward: ImplicitReward = section(
    ImplicitReward, "of the method implicit_reward"
  )
  staged: Staged = section(Staged, "of the method staged")
  interleaved: Interleaved = section(Interleaved, "of the method interleaved")
  progressive: Progressive = section(Progressive, "of the method progressive")
  data_mix: DataMix = section(DataMix, "of the method data_mix")
  merge: Merge = section(Merge, "of the method merge")
  non_decoupling: NonDecoupling = section(
    NonDecoupling, "of the method non_decoupling"
  )
