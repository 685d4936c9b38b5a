"""What benchmarks/step.py asks of every contestant.

Random token ids; what matters is how long sequences are. GSM8K's lengths are
those of 64 of its training examples under SmolLM2's tokenizer, prompt and
solution; long-tail completions are sampled as benchmarks/rollout.py's.
"""

from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers import workloads

# (prompt, solution) tokens of 64 random training examples of GSM8K.
GSM8K_LENGTHS = (
  (71, 74),
  (101, 149),
  (90, 77),
  (81, 80),
  (163, 166),
  (117, 126),
  (89, 103),
  (67, 56),
  (62, 85),
  (64, 73),
  (106, 157),
  (42, 71),
  (79, 81),
  (94, 125),
  (52, 90),
  (50, 144),
  (131, 193),
  (42, 82),
  (73, 67),
  (52, 190),
  (44, 117),
  (75, 98),
  (52, 76),
  (51, 58),
  (38, 66),
  (83, 105),
  (61, 90),
  (55, 92),
  (97, 140),
  (62, 63),
  (76, 77),
  (31, 87),
  (66, 96),
  (22, 93),
  (46, 35),
  (43, 85),
  (44, 72),
  (73, 71),
  (87, 106),
  (54, 101),
  (34, 79),
  (57, 66),
  (38, 76),
  (61, 94),
  (25, 71),
  (58, 128),
  (105, 133),
  (71, 89),
  (98, 106),
  (45, 51),
  (63, 97),
  (36, 79),
  (75, 89),
  (54, 108),
  (94, 110),
  (35, 64),
  (44, 106),
  (39, 120),
  (43, 56),
  (39, 45),
  (106, 202),
  (52, 47),
  (57, 64),
  (46, 51),
)


class Work(NamedTuple):
  """One update's data."""

  name: str
  method: str  # sft, grpo or bridge
  prompts: list[list[int]]  # of each row
  completions: list[list[int]]
  advantages: list[float]  # of each row; of SFT: not read
  demonstrations: list[tuple[list[int], list[int]]]  # of bridge

  @property
  def tokens(self) -> int:
    """Tokens of all rows, padding left out."""
    pairs = [*zip(self.prompts, self.completions, strict=True)]
    return sum(len(p) + len(c) for p, c in (*pairs, *self.demonstrations))

  def request(self, seed: int) -> dict[str, Any]:
    """Returns the line that asks for it."""
    return {**self._asdict(), "seed": seed}


def works(names: list[str], vocab_size: int) -> list[Work]:
  """Returns the updates of these names, a part of NAMES.

  Args:
    names: what to ask for.
    vocab_size: of the model; id 0 is left to padding.
  """
  rng = np.random.default_rng(0)
  made = []
  for name in NAMES:
    method, kind = name.split(", ")
    rows, groups = _lengths(kind, method)
    prompts = [_ids(rng, n, vocab_size) for n, _ in rows]
    prompts = [prompts[first] for first in groups]
    completions = [_ids(rng, n, vocab_size) for _, n in rows]
    advantages = rng.normal(size=len(rows))
    if kind == "real lengths":
      # A third of the groups are all right or all wrong.
      idle = np.array(groups) // _SAMPLES % 3 == 2
      advantages = np.where(idle, 0.0, advantages)
    made.append(
      Work(
        name,
        method,
        prompts,
        completions,
        advantages.tolist(),
        _fifth(rng, rows, vocab_size) if method == "bridge" else [],
      )
    )
  return [work for work in made if work.name in names]


_SAMPLES = 8
NAMES = (
  "sft, full length",
  "sft, real lengths",
  "grpo, full length",
  "grpo, real lengths",
  "bridge, full length",
  "bridge, real lengths",
)


def _lengths(kind, method):
  """(prompt, completion) tokens of each row, and the row with its prompt."""
  if kind == "full length":
    rows = [(64, 192)] * 32
  elif method == "sft":
    rows = list(GSM8K_LENGTHS[:32])
  else:
    asked = [prompt for prompt, _ in GSM8K_LENGTHS[:9]]
    tail = workloads.long_tail(_SAMPLES * len(asked))
    rows = [(asked[i // _SAMPLES], n) for i, n in enumerate(tail)]
  if method == "sft":
    return rows, list(range(len(rows)))
  return rows, [i // _SAMPLES * _SAMPLES for i in range(len(rows))]


def _fifth(rng, rows, vocab_size):
  """Demonstrations with a fifth of the rows' tokens."""
  left, sampled = sum(p + c for p, c in rows) / 5, []
  for prompt, solution in GSM8K_LENGTHS:
    if left <= 0:
      break
    sampled.append(
      (_ids(rng, prompt, vocab_size), _ids(rng, solution, vocab_size))
    )
    left -= prompt + solution
  return sampled


def _ids(rng, count, vocab_size):
  return rng.integers(1, vocab_size, count).tolist()
