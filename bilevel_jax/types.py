"""Every pytree that passes between packages; what names and signs mean.

Letters in shapes
  B  rows of a batch          P  prompts               V  vocabulary
  T  tokens of a row          G  samples per prompt    D  width of the model
  S  columns of a KV cache    N  samples, N = P * G    L  layers
  M  micro-batches            R  rows of one           C  columns of its rows

Alignment.  `logprobs[:, t]` scores `tokens[:, t]` given what precedes it;
column 0 is zero. Nobody shifts twice.

Log-probabilities.  Always of softmax(logits / temperature) over the whole
vocabulary, in float32, where an id that no token has is at -inf. top-k, top-p
and min-p decide which tokens may be sampled, never what their log-probability
is said to be, so the sampler's numbers and the learner's are of one
distribution.

Weights, not modes.  A loss is `sum(weights * per_token)`. The weights are
made once, over the global batch (`objectives.weighting`), so it may be split
over micro-batches and devices in any way.

Signs.  Objectives are losses and are minimised. The BRIDGE paper maximises J;
its J_SFT and J_RL are minus our losses.

Names
  base          theta       what is trained: every weight of the language model,
                            or LoRA factors over one that is frozen
  adapter       w           LoRA factors, the upper level's variables
  rl_only_base  theta-hat   a copy of the base moved by RL alone
  penalty       lambda      weight of RL and of the cooperative gain, in [0, 1]
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, dataclass_transform

import jax
import numpy as np

Array = jax.Array | np.ndarray
Tree = Any  # nested dicts, tuples and lists with arrays as leaves
Metrics = Mapping[str, Array | float]

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def pytree(cls: type[_T]) -> type[_T]:
  """Returns `cls` as a frozen keyword-only dataclass that JAX can flatten."""
  cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
  return jax.tree_util.register_dataclass(cls)


class Policy(NamedTuple):
  """A language model as pure functions: all that other packages see of it.

  `base` and `adapter` are the trees to differentiate; `adapter=None` is the
  plain base. `weights` is what the sampler reads: the adapter folded into the
  base, in the compute dtype, one tree per layer.
  """

  vocab_size: int
  init: Callable[[jax.Array], Tree]
  """key -> base, float32."""
  init_adapter: Callable[[jax.Array], Tree]
  """key -> adapter, float32, whose product A @ B is zero."""
  hidden: Callable[..., jax.Array]
  """(base, adapter, tokens, positions, segment_ids, continuations=None), each
  [B, T] -> hidden states [B, T, D] after the final norm. A token attends to
  earlier columns of its own segment; segment 0 is padding. With continuations,
  to those of its segment's continuation 0 (the shared prefix) and its own."""
  unembedding: Callable[[Tree], jax.Array]
  """base -> [D, V]; logits are hidden @ unembedding, in float32."""
  merge: Callable[[Tree, Tree | None], Tree]
  """(base, adapter) -> weights for `extend` and `logits`."""
  init_cache: Callable[[int, int], Tree]
  """(rows, columns) -> an empty cache, zeros; rows are on axis 0 of each array,
  columns on any one other."""
  extend: Callable[..., tuple[jax.Array, Tree]]
  """(weights, cache, tokens [B, n], positions [B, n], start, first [B]) ->
  (hidden [B, n, D], cache). Writes n columns from the scalar `start`; a query
  in column c attends to columns first[b] <= j <= c. Serves prefill (start 0,
  rows left-padded) and decoding (n = 1) alike."""
  logits: Callable[[Tree, jax.Array], jax.Array]
  """(weights, hidden [..., D]) -> float32 logits [..., V], -inf of ids that no
  token has."""
  max_positions: int | None = None
  """Tokens that a sequence may have; None: any number."""
  rows: jax.sharding.NamedSharding | None = None
  """How the rows of a training batch lie on devices; None: on one."""
  without_token: frozenset[int] = frozenset()
  """Ids in 0..V-1 that no token of the tokenizer has: of probability 0."""
  over: Callable[[Tree], "Policy"] | None = None
  """Where `base` are LoRA factors: the base that they are over, which no method
  sees -> the policy that can compute. None: nothing is frozen."""
  init_frozen: Callable[[jax.Array], Tree] | None = None
  """key -> the base that is to be frozen, float32; None: nothing is."""
  freeze: Callable[[str, Array], Tree] | None = None
  """(path, array of that base) -> what `over` takes in its place."""


@pytree
class PackedRows:
  """Where the tokens of a batch are computed: M micro-batches of R rows.

  S devices have R / S rows each, and K log-probs.

  A row of C columns holds as many sequences as fit, and what several share,
  such as the prompt of a group, once. Padded rows are computed for nothing;
  these are not.
  """

  tokens: Array  # [M, R, C] int32
  positions: Array  # [M, R, C] int32, from 0 in each sequence
  segment_ids: Array  # [M, R, C] int32, 0 is padding
  continuations: Array | None  # [M, R, C] int32; see `Policy.hidden`
  columns: Array  # [M, S, K] int32, of a device's R / S rows one after the
  # other, the column whose hidden state predicts a target
  targets: Array  # [M, S, K] int32, tokens
  where: Array  # [B, T] int32, a token's index in M * S * K; -1: not computed
  used: Array  # [] int32, micro-batches that hold anything, the first ones


@pytree
class TokenBatch:
  """Rows of tokens with a weight each: all that an SFT loss needs."""

  tokens: Array  # [B, T] int32, right-padded
  positions: Array  # [B, T] int32, from 0 in each segment
  segment_ids: Array  # [B, T] int32, 0 is padding
  weights: Array  # [B, T] float32; 0 on prompts, padding and column 0
  packed: PackedRows | None = None  # how to compute it; None: as it stands
  ids: Array | None = None  # [B] int32, a demonstration's place among those of
  # the run, 0 on empty rows; None: rollouts
  expert_logprobs: Array | None = None  # [B, T] float32, of another model
  group_advantages: Array | None = None  # [B, 1] of demonstrations in groups


@pytree
class RLBatch(TokenBatch):
  """Rows sampled from a policy, ready for a policy-gradient loss."""

  advantages: Array  # [B, T] float32
  rewards: Array  # [B] float32, 0 where `scored` is 0
  baselines: Array  # [B] float32, mean reward of the group's other samples
  scored: Array  # [B] float32, 1 where the row counts, 0 where it is left out
  questions: Array  # [B] int32, whose sample it is, in its step
  correct: Array  # [B] float32, 1 where the answer is right
  accuracy: Array  # [B] float32, right share of its group
  sampler_logprobs: Array | None  # [B, T] float32, the sampler's; None: unread
  old_logprobs: Array | None  # [B, T] float32; None: on policy, ratio is 1
  ref_logprobs: Array | None  # [B, T] float32; None: no KL term
  prefixed: Array | None = None  # [B, T] float32, 1 where not sampled; None:
  # nowhere
  temperature: Array | None = None  # [] float32, of the samples; None: the
  # settings'
  teacher_weights: Array | None = None  # [B] float32, of a teacher's opinion
  teacher_states: Array | None = None  # [B, T, D], the teacher's that predict a
  # token; 0 where it has none
  sampled_by_another: bool = dataclasses.field(
    default=False, metadata={"static": True}
  )  # than the policy that learns: its KL term is weighted by the ratio


@pytree
class Taught(TokenBatch):
  """A batch's completions after other prompts: what a teacher reads."""

  places: Array  # [B, T] int32, of each token of the batch its column here; -1:
  # it has none


_RL = TypeVar("_RL", bound=RLBatch | None)
_SFT = TypeVar("_SFT", bound=TokenBatch | None)


@pytree
class StepBatch(Generic[_RL, _SFT]):
  """What one update sees. An empty part has weights that are all zero.

  A part that the method's plan does not ask for is None.
  """

  rl: _RL
  sft: _SFT
  teacher: Taught | None = None


@pytree
class TrainState:
  """Everything an update reads and writes; what a checkpoint holds."""

  updates: Array  # [] int32, updates applied so far
  skipped_in_a_row: Array  # [] int32, non-finite updates since a good one
  base: Tree
  adapter: Tree | None
  rl_only_base: Tree | None
  optimizer_states: dict[str, Tree]  # by the field that each one moves
  extra: Tree  # a method's own state


class Demonstration(NamedTuple):
  """A prompt with its worked solution, as tokens."""

  id: int  # its place among the demonstrations of the run, from 0
  prompt: np.ndarray  # int32 token ids
  solution: np.ndarray  # int32 token ids, the EOS included
  logprobs: np.ndarray | None = None  # of the solution's tokens, float32
  weight: float = 1.0  # that its SFT loss is multiplied by
  token_weights: np.ndarray | None = None  # float32, of the prompt's tokens and
  # the solution's, where earlier turns have a loss too; None: 0 and 1


class Dialogue(NamedTuple):
  """Messages in place of a question that is worded by the settings.

  Without any turn, `question` is a text to be continued as it stands.
  """

  turns: tuple[Mapping[str, Any], ...] = ()  # role, content, perhaps weight
  asked: int = 0  # turns that the prompt of a rollout has, the first ones
  tools: tuple[Mapping[str, Any], ...] | None = None  # JSON schemas
  variables: Mapping[str, Any] = {}  # what else the chat template sees


class Question(NamedTuple):
  """One example of a corpus, as text."""

  id: str
  question: str
  answer: str  # empty where there is none
  solution: str | None  # worked solution that ends with the answer
  meta: Mapping[str, Any]
  dialogue: Dialogue | None = None
  weight: float = 1.0  # that its SFT loss is multiplied by

  @property
  def asked(self) -> str:
    """What is asked, and all that precedes it: the same for the same prompt."""
    if self.dialogue is None or not self.dialogue.turns:
      return self.question
    turns = self.dialogue.turns[: self.dialogue.asked]
    return json.dumps([turns, self.dialogue.tools], default=str)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How tokens are sampled. Scalars, or one value per prompt."""

  temperature: float | np.ndarray = 1.0  # 0 is greedy
  top_p: float | np.ndarray = 1.0
  top_k: int | np.ndarray = 0  # 0 keeps every token
  min_p: float | np.ndarray = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requests:
  """Prompts to be completed. On the host; no padding yet."""

  prompts: list[np.ndarray]  # P arrays of int32 token ids
  prompt_ids: np.ndarray  # [P] uint32, names each prompt's random stream
  samples_per_prompt: int  # G
  max_new_tokens: int | np.ndarray  # budget, EOS included; or [P] of them
  eos_ids: tuple[int, ...]  # any of them ends a completion
  stop: tuple[str, ...] = ()  # any text of them ends one, and is kept
  total_tokens: int | None = None  # of all completions; see `engine.generate`
  prefixes: Sequence[np.ndarray] | None = None  # [N], what each begins with
  first_sample: int = 0  # number of a prompt's first sample in its stream
  sampling: Sampling
  key: jax.Array  # typed PRNG key, already folded with the step

  @property
  def budgets(self) -> np.ndarray:
    """[P] int, the most tokens that a completion of each prompt may have."""
    return np.broadcast_to(self.max_new_tokens, (len(self.prompts),))


FINISH_REASONS = ("stop", "length", "error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
  """Completions, on the host, prompt-major: row n is sample n % G of n // G."""

  requests: Requests
  tokens: np.ndarray  # [N, M] int32, zero after `lengths`
  lengths: np.ndarray  # [N] int32, the EOS counted, and what was given
  logprobs: np.ndarray  # [N, M] float32, the sampler's; zero where not sampled
  finish_reasons: np.ndarray  # [N] int8, index into FINISH_REASONS

  def share_ended_by(self, reason: str) -> float:
    """Share of completions with that one of FINISH_REASONS."""
    return float(np.mean(self.finish_reasons == FINISH_REASONS.index(reason)))

  @property
  def truncated(self) -> np.ndarray:
    """[N] bool, cut for its length: nothing of its own ended it."""
    return self.finish_reasons == FINISH_REASONS.index("length")

  @property
  def cut_by_total(self) -> np.ndarray:
    """[N] bool, "length" by the total budget and not by the row's own."""
    return self.truncated & (
      self.lengths < self.requests.budgets[self.prompt_index]
    )

  @property
  def prefix_lengths(self) -> np.ndarray:
    """[N] int32, tokens that a completion began with and did not draw."""
    if self.requests.prefixes is None:
      return np.zeros_like(self.lengths)
    given = np.array(list(map(len, self.requests.prefixes)), np.int32)
    return np.minimum(given, self.lengths)

  @property
  def prompt_index(self) -> np.ndarray:
    """[N] int32, the prompt of each row."""
    return np.repeat(
      np.arange(len(self.requests.prompts), dtype=np.int32),
      self.requests.samples_per_prompt,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """Rewards of N completions, on the host."""

  rewards: np.ndarray  # [N] float32, 0 where not scored
  scored: np.ndarray  # [N] bool, False: could not be scored, left out
  correct: np.ndarray  # [N] bool, the first part of the reward is at its top
  values: np.ndarray | None = (
    None  # [N, parts of the reward] float32, NaN where
  )
  # a part has none; None: unknown
