"""The schema: every setting, its type, its default and what it means."""

import dataclasses
from typing import Any, Literal

from bilevel_jax import methods
from bilevel_jax.config import losses
from bilevel_jax.config.model import Adapter, Model
from bilevel_jax.data.settings import Demonstrations, Source, Tokenizer
from bilevel_jax.fields import section, setting
from bilevel_jax.rewards.sandbox.settings import Sandbox

BASE_LEARNING_RATE = 1e-6
FACTORS_LEARNING_RATE = 1e-4


@dataclasses.dataclass(frozen=True)
class Data:
  questions: Source = section(Source, "questions for rollouts and rewards")
  demonstrations: Demonstrations = section(
    Demonstrations, "worked solutions; nothing set: the questions' own"
  )
  evaluation: Source = section(Source, "held-out questions")
  solution: str | None = setting(
    None,
    "text of a demonstration, formatted with the question's fields, such as "
    "{answer}; default: its solution",
  )
  demonstration_share: float = setting(
    1.0, "share of the demonstrations that is used", at_least=0, at_most=1
  )
  demonstration_group: str | None = setting(
    None,
    "field of the demonstrations that says which group each is of: a teacher, "
    "a source, a kind; what is learned of demonstrations is reported by it",
  )
  max_prompt_tokens: int = setting(512, "longest prompt", at_least=1)
  max_demonstration_tokens: int = setting(
    1024, "longest prompt plus solution", at_least=2
  )
  overlong: Literal["drop", "truncate"] = setting(
    "drop", "what becomes of longer prompts and demonstrations"
  )
  pass_rates: str | None = setting(
    None,
    "JSONL file with an id and a pass_rate for each question, such as "
    "`python -m bilevel_jax.difficulty` writes of a policy's answers",
  )
  keep: str | None = setting(
    None,
    "questions to ask by data.pass_rates: the least and the most, as 0.1..0.9; "
    "0..0.99 leaves out what is solved; default: all",
  )
  curriculum: Literal["none", "easy_first", "hard_first"] = setting(
    "none",
    "order of the questions of each epoch by data.pass_rates; none, and among "
    "equal ones: shuffled",
  )
  prompts_per_step: int = setting(16, "questions per step", at_least=1)
  paired_questions_share: float | None = setting(
    None,
    "share of the questions asked, evenly spread, that come from those with a "
    "demonstration of their own: the dose of methods that learn from these "
    "(hpt, luffy and their like); default: as they come",
    at_least=0,
    at_most=1,
  )
  demonstrations_per_step: int = setting(
    16, "demonstrations per step", at_least=0
  )


@dataclasses.dataclass(frozen=True)
class Reward:
  verifiers: tuple[str, ...] = setting(
    ("math",),
    "any of math, code, exact, number, expression, choice, reasoning_gym, "
    "regex, or dotted paths to functions of your own: (completion, question) "
    "-> float, TRL's or verl's (docs/how_to/own_reward.md)",
  )
  verifiers_by: str | None = setting(
    None,
    "field of the questions that names the one of reward.verifiers that scores "
    "each, such as math or code; default: all of them, as a weighted sum",
  )
  verifier_names: dict[str, str] = setting(
    {},
    "value of the field reward.verifiers_by -> verifier, such as "
    "{'lcb': 'code'}; a value that is not there is a verifier's name",
  )
  weights: tuple[float, ...] | None = setting(
    None, "of the verifiers in their sum; default: 1 each"
  )
  pattern: str | None = setting(None, "regular expression of `regex`")
  overlong_tokens: int | None = setting(
    None,
    "last tokens of rollout.max_new_tokens over which a penalty grows to "
    "overlong_penalty (DAPO); None: no penalty",
    at_least=1,
  )
  overlong_penalty: float = setting(
    1.0, "of a completion of rollout.max_new_tokens", at_least=0
  )
  deadline_s: float = setting(5.0, "seconds one scoring may take", above=0)
  memory: str | None = setting(
    "4GB",
    "private memory that a scoring process, and each that it starts, may have: "
    "a number with MB, GB, MiB or GiB; None: no limit",
  )
  max_unscored_steps: int = setting(
    3,
    "steps in a row of which no completion could be scored, after which the "
    "run stops",
    at_least=1,
  )
  workers: int | None = setting(
    None,
    "scoring processes; default: as many as there are cores",
    at_least=1,
    at_most=256,
  )


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
  samples_per_prompt: int = setting(4, "completions per question", at_least=1)
  max_new_tokens: int = setting(256, "longest completion, EOS included")
  temperature: float = setting(1.0, "sampling temperature", above=0)
  top_p: float = setting(1.0, "nucleus kept, 1 keeps all", above=0, at_most=1)
  top_k: int = setting(0, "most likely tokens kept, 0 keeps all", at_least=0)
  min_p: float = setting(
    0.0, "least share of the top probability", at_least=0, below=1
  )
  stop: tuple[str, ...] = setting(
    (), "strings that end a completion, besides its EOS; they are kept"
  )
  total_tokens: int | None = setting(
    None,
    "most tokens of a step's completions, or of each of rounds_for_signal; "
    "beyond it all are cut at one length; default: no bound",
    at_least=1,
  )
  rounds_for_signal: int | None = setting(
    None,
    "groups of equal rewards are dropped, and others sampled in their place, "
    "in at most so many rounds (DAPO's dynamic sampling); None: they are kept",
    at_least=1,
  )
  max_rows: int = setting(1024, "rows decoded at once", at_least=1)
  kv_cache_bytes: int | None = setting(
    None,
    "KV cache of a device, kept by decoding fewer rows at once; default: 0.6 "
    "of what is free, or on CPUs 0.25 of the host's memory",
    at_least=1,
    below=2**63,
  )


@dataclasses.dataclass(frozen=True)
class Expert:
  weights: str | None = setting(
    None,
    "directory, run, hub id or .gguf file of the other model that a method "
    "asks: kdrl's teacher, or what wrote the demonstrations of pear; default: "
    "the weights that the run begins with",
  )
  revision: str | None = setting(None, "hub revision of `weights`")


_Sections: Any = dataclasses.make_dataclass(
  "_Sections",
  [
    (name, module.Options, section(module.Options, f"of the method {name}"))
    for name, module in methods.METHODS.items()
    if hasattr(module, "Options")
  ],
  frozen=True,
)


@dataclasses.dataclass(frozen=True)
class Method(_Sections):
  """How SFT and RL are combined, and a section for each method's settings."""

  name: str = setting(
    methods.DEFAULT, "a name of docs/methods.md, or the dotted path of your own"
  )
  options: dict[str, Any] = setting(
    {}, "settings of a method of your own, which its class Options declares"
  )
  expert: Expert = section(Expert, "another model, which some methods ask")

  @property
  def own(self) -> Any:
    """The settings of the method that is chosen; empty where it has none."""
    return getattr(self, self.name, self.options)


@dataclasses.dataclass(frozen=True)
class Optimizer:
  name: Literal["adamw", "sgd", "muon"] = setting(
    "adamw", "optax optimiser; muon: of the layers' matrices, AdamW of the rest"
  )
  learning_rate: float | None = setting(
    None,
    "peak learning rate; default: 1e-6 of every weight, 1e-4 of LoRA factors",
    at_least=0,
  )
  schedule: Literal["constant", "cosine", "linear"] = setting(
    "constant", "decay after the warm-up, to end_share of the peak"
  )
  warmup_steps: int = setting(0, "updates of linear warm-up", at_least=0)
  end_share: float = setting(
    0.0, "last learning rate over the peak", at_least=0, at_most=1
  )
  weight_decay: float = setting(0.0, "decoupled, on matrices", at_least=0)
  momentum: float = setting(
    0.0, "of sgd; of muon, where 0 stands for 0.95", at_least=0, below=1
  )
  b1: float = setting(0.9, "Adam's first decay", at_least=0, below=1)
  b2: float = setting(0.999, "Adam's second decay", at_least=0, below=1)
  eps: float = setting(1e-8, "Adam's epsilon", above=0)
  eps_root: float = setting(
    1e-16, "inside Adam's root, for its derivative", at_least=0
  )
  clip_norm: float | None = setting(1.0, "global gradient norm kept", above=0)


@dataclasses.dataclass(frozen=True)
class Optimizers:
  base: Optimizer = section(Optimizer, "of the base (and the RL-only base)")
  adapter: Optimizer = section(Optimizer, "of the adapter")


@dataclasses.dataclass(frozen=True)
class Training:
  micro_batch_tokens: int = setting(
    8192, "tokens of a forward pass on each device", at_least=1
  )
  packing: Literal["auto", "on", "off"] = setting(
    "auto",
    "several sequences in a row, shared prompts once; auto: where the "
    "attention kernel can",
  )
  row_tokens: int = setting(
    128,
    "columns of a row, at least; a longer sequence makes them more",
    at_least=1,
  )
  skip_idle_rollouts: bool = setting(
    True,
    "leave rollouts without advantage out of the update, where they have no "
    "gradient: with rl.kl_coef=0",
  )
  max_sampled_tokens: int | None = setting(
    None,
    "budget: the run ends with the step that reaches it, whatever is left of "
    "`steps`",
    at_least=1,
    below=2**63,
  )
  max_update_flops: float | None = setting(
    None,
    "budget: the same of the updates' floating-point operations, as counted in "
    "training/update_flops",
    above=0,
  )
  max_skipped_in_a_row: int = setting(
    5, "non-finite updates in a row that end the run", at_least=1
  )


@dataclasses.dataclass(frozen=True)
class Evaluation:
  every: int | None = setting(
    None, "steps between evaluations; default: first and last", at_least=1
  )
  max_new_tokens: int | None = setting(
    None, "longest answer; default: the rollout's", at_least=1
  )
  temperature: float = setting(0.0, "0 is greedy", at_least=0)


@dataclasses.dataclass(frozen=True)
class Checkpoints:
  every: int | None = setting(
    50, "steps between checkpoints; None: only the last", at_least=1
  )
  keep_last: int = setting(2, "most recent checkpoints kept", at_least=1)
  keep_best: int = setting(1, "best by accuracy kept", at_least=0)
  export: bool = setting(True, "write Hugging Face weights at the end")
  export_merged: bool = setting(
    False,
    "with model.train=adapter, write whole merged weights, too; the adapter "
    "alone names its base",
  )


@dataclasses.dataclass(frozen=True)
class Logging:
  tensorboard: bool = setting(False, "write TensorBoard events")
  wandb_project: str | None = setting(None, "W&B project to log to")
  completions_per_step: int = setting(
    4, "completions written to completions.jsonl", at_least=0
  )
  profile_steps: tuple[int, ...] = setting(
    (), "first and last step to trace with JAX's profiler, into run_dir/profile"
  )
  entropy: bool = setting(
    True, "log the policy's entropy, which reads all logits once more"
  )
  show_every: int = setting(10, "steps between shown completions", at_least=1)
  progress: bool = setting(True, "live progress display on a terminal")


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Nothing set: chosen, with the reason in the run's opening lines."""

  data: int | None = setting(
    None, "devices along the data axis; default: 1", at_least=1
  )
  fsdp: int | None = setting(
    None,
    "devices that parameters are split over; default: all that are left",
    at_least=1,
  )
  tensor: int | None = setting(
    None, "devices that a matrix is split over; default: 1", at_least=1
  )
  device_bytes: int | None = setting(
    None,
    "memory of a device, which a run must fit; default: what it says it has; "
    "CPUs say nothing",
    at_least=1,
    below=2**63,
  )


@dataclasses.dataclass(frozen=True)
class Config:
  run_dir: str = setting("runs/default", "where the run leaves its files")
  resume: bool = setting(False, "continue the run in run_dir")
  seed: int = setting(
    0, "of weights, order and sampling", at_least=0, below=2**32
  )
  steps: int = setting(100, "steps: one rollout batch each", at_least=1)
  model: Model = section(Model, "the language model")
  adapter: Adapter = section(Adapter, "LoRA factors of the policy")
  tokenizer: Tokenizer = section(Tokenizer, "text to tokens")
  data: Data = section(Data, "questions and demonstrations")
  reward: Reward = section(Reward, "how a completion is scored")
  sandbox: Sandbox = section(
    Sandbox, "where the programs of the verifier code run, and what they may do"
  )
  rollout: RolloutSettings = section(RolloutSettings, "how answers are sampled")
  rl: losses.RL = section(losses.RL, "the reinforcement-learning objective")
  sft: losses.SFT = section(losses.SFT, "the supervised objective")
  method: Method = section(Method, "how the two are combined")
  optimizer: Optimizers = section(Optimizers, "optimisers")
  training: Training = section(Training, "the update")
  evaluation: Evaluation = section(Evaluation, "accuracy on held-out questions")
  checkpoints: Checkpoints = section(Checkpoints, "what is saved, and when")
  logging: Logging = section(Logging, "what is shown and written")
  mesh: Mesh = section(Mesh, "how devices are laid out")

  def learning_rate(self, tree: Literal["base", "adapter"]) -> float:
    """Returns the peak rate of what an optimiser moves, or its default."""
    given = getattr(self.optimizer, tree).learning_rate
    if given is not None:
      return given
    whole = tree == "base" and self.model.train == "all"
    return BASE_LEARNING_RATE if whole else FACTORS_LEARNING_RATE

  @property
  def updates_per_step(self) -> int:
    """Optimiser updates of one step."""
    return self.rl.updates_per_rollout * self.rl.passes_per_rollout

  @property
  def total_updates(self) -> int:
    """Optimiser updates of the whole run."""
    return self.steps * self.updates_per_step
