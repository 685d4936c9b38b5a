"""Completions of prompts, from Python and from the command line.

From Python, `load` reads a model and `complete` asks it. The command line
prints what comes as it is sampled:

  python -m bilevel_jax.generate --weights runs/mine --prompt "What is 17 + 25?"

WEIGHTS is a run directory or its export, a Hugging Face directory, a hub id or
a .gguf file. A prompt is put as the run put its questions; without a run, it
is the user's turn of the chat template, or a line of its own where there is
none. With --raw it is continued as it stands.

Completions go to stdout in order, the first unfinished one as it grows; how
they ended goes to stderr.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, TextIO

import jax
import numpy as np
import rich.console

from bilevel_jax import (
  command_line,
  compile_cache,
  config,
  errors,
  types,
  weights,
)
from bilevel_jax.data import settings as data_settings
from bilevel_jax.data import tokenizer as tokenizer_lib
from bilevel_jax.rollout import engine
from bilevel_jax.weights import sampler

_BOUNDS = command_line.SAMPLING | {
  "samples": {"at_least": 1, "at_most": 2**16},
  "max_new_tokens": {"at_least": 1},
}
_SEGMENT = 8  # tokens between two looks at what came


class Completions(NamedTuple):
  """What a model made of P prompts, G times each."""

  texts: list[list[str]]
  """[P][G], without the tokens that end a text."""
  rollout: types.Rollout
  """Their tokens, log-probs and why each ended."""


def load(
  source: str,
  *,
  revision: str | None = None,
  system: str | None = None,
  template: str | None = None,
  dtype: str | None = None,
) -> sampler.Sampler:
  """Returns a model on one device, ready for `complete`.

  Args:
    source: a run directory or its export, a Hugging Face directory, a hub id
      or a .gguf file.
    revision: branch, tag or commit of a hub id.
    system: system message; default: the run's, none without a run.
    template: the user's turn, with {question} where a prompt goes; default:
      the run's, the prompt itself without a run.
    dtype: float32 or bfloat16, of weights and cache; default: bfloat16 where
      the device multiplies it, else float32.

  Raises:
    ConfigError: it cannot be found, read, or put together.
  """
  opened = weights.open(source, revision=revision)
  prompt_format = sampler.prompt_format(
    opened,
    config.Tokenizer(prompt="{question}"),
    system=system,
    template=template,
  )
  tokenizer = sampler.read_tokenizer(opened, prompt_format)
  return sampler.build(opened, tokenizer, dtype=dtype)


def complete(
  model: sampler.Sampler,
  prompts: Sequence[str],
  *,
  samples: int = 1,
  max_new_tokens: int = 256,
  sampling: types.Sampling = types.Sampling(),
  stop: Sequence[str] = (),
  seed: int = 0,
  raw: bool = False,
  segment: int = 32,
  watch: Callable[[types.Rollout], object] | None = None,
) -> Completions:
  """Returns completions of prompts; the same for the same seed.

  Args:
    prompts: P texts, put into the model's template.
    stop: texts that end a completion, and are kept.
    raw: whether to continue the prompts as they stand, without a template.
    segment: tokens between two calls of `watch`.
    watch: called with what there is so far.

  Raises:
    ConfigError: a prompt that cannot be encoded, or a request that the model
      cannot meet.
  """
  tokenizer = model.tokenizer
  rollout = engine.generate(
    model.policy,
    model.weights,
    types.Requests(
      prompts=[_tokens(tokenizer, text, raw) for text in prompts],
      prompt_ids=np.arange(len(prompts), dtype=np.uint32),
      samples_per_prompt=samples,
      max_new_tokens=max_new_tokens,
      eos_ids=tokenizer.eos_ids,
      sampling=sampling,
      key=jax.random.key(seed),
      stop=tuple(stop),
    ),
    decode=tokenizer.decode,
    segment=segment,
    watch=watch and (lambda segment: watch(segment.so_far)),
    sharding=model.policy.rows,
  )
  texts = [
    tokenizer.decode(row[:length])
    for row, length in zip(rollout.tokens, rollout.lengths, strict=True)
  ]
  return Completions(
    [texts[n : n + samples] for n in range(0, len(texts), samples)], rollout
  )


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code of `command_line.exit_code`."""
  options = _parse(arguments)
  return command_line.exit_code(lambda: _generate(options))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = command_line.Parser("python -m bilevel_jax.generate", __doc__)
  add = parser.add
  add("--weights", "where the model is", required=True)
  add("--revision", "branch, tag or commit of a hub id")
  add("--prompt", "repeatable", action="append", metavar="TEXT")
  add(
    "--prompt-file",
    "a prompt on each line that is not blank; - is stdin",
    metavar="FILE",
  )
  add("--samples", "of each prompt", int, 1, metavar="N")
  add("--seed", "same seed, same text", int, 0, metavar="N")
  add("--temperature", "0 is greedy", float, 1.0, metavar="X")
  add("--top-p", "nucleus kept", float, 1.0, metavar="X")
  add("--top-k", "0 keeps all", int, 0, metavar="N")
  add("--min-p", "least share of the top token's", float, 0.0, metavar="X")
  add("--max-new-tokens", "longest completion", int, 256, metavar="N")
  add(
    "--stop",
    "ends a completion, and is kept; repeatable",
    action="append",
    metavar="TEXT",
  )
  add("--system", "system message", metavar="TEXT")
  add(
    "--template",
    "the user's turn, with {question} where the prompt goes",
    metavar="TEXT",
  )
  add(
    "--dtype",
    "of weights and cache (default bfloat16 where the device has it)",
    choices=("float32", "bfloat16"),
  )
  parser.add_argument(
    "--raw", action="store_true", help="no template: continue the prompt itself"
  )
  return parser.parse_args(arguments)


def _generate(options: argparse.Namespace) -> None:
  texts = _prompts(options)
  rules = types.Sampling(
    temperature=options.temperature,
    top_p=options.top_p,
    top_k=options.top_k,
    min_p=options.min_p,
  )
  _check(options)
  with rich.console.Console(stderr=True).status(f"reading {options.weights}"):
    model = load(
      options.weights,
      revision=options.revision,
      system=options.system,
      template=options.template,
      dtype=options.dtype,
    )
  rollout = complete(
    model,
    texts,
    samples=options.samples,
    max_new_tokens=options.max_new_tokens,
    sampling=rules,
    stop=options.stop or (),
    seed=options.seed,
    raw=options.raw,
    segment=_SEGMENT,
    watch=_Printer(model.tokenizer, texts, options.samples, sys.stdout).show,
  ).rollout
  print(_closing(rollout), file=sys.stderr)


def _prompts(options: argparse.Namespace) -> list[str]:
  prompts: list[str] = [*(options.prompt or ())]
  if options.prompt_file is not None:
    path = options.prompt_file
    try:
      text = (
        sys.stdin.read()
        if path == "-"
        else pathlib.Path(path).read_text(encoding="utf-8-sig")
      )
    except UnicodeDecodeError as error:
      raise errors.ConfigError(
        f"--prompt-file must be UTF-8 text, got {path}: {error}"
      ) from None
    prompts += [line for line in text.splitlines() if line.strip()]
  if not all(text.strip() for text in prompts):
    raise errors.ConfigError("--prompt must not be empty")
  if not prompts:
    raise errors.ConfigError(
      "--prompt or --prompt-file must give a prompt, got none"
    )
  return prompts


def _check(options: argparse.Namespace) -> None:
  command_line.check_bounds(options, _BOUNDS)
  for name in ("system", "template"):
    if options.raw and getattr(options, name) is not None:
      raise errors.ConfigError(
        f"--raw continues the prompt itself, so that --{name} has no place"
      )
  if options.template is not None:
    data_settings.check_prompt(options.template, "--template")


def _tokens(
  tokenizer: tokenizer_lib.Tokenizer, text: str, raw: bool
) -> np.ndarray:
  if not raw:
    return tokenizer.prompt_tokens(
      types.Question(id="", question=text, answer="", solution=None, meta={})
    )
  tokens = tokenizer.text_tokens(text)
  if not len(tokens):
    raise errors.ConfigError(f"a prompt must have a token, got {text!r}")
  return tokens


class _Printer:
  """Writes completions in order: each as far as it has come, then the next."""

  def __init__(
    self,
    decoder: tokenizer_lib.Tokenizer,
    prompts: list[str],
    samples: int,
    out: TextIO,
  ):
    self._decoder, self._prompts = decoder, prompts
    self._samples, self._out = samples, out
    self._row = 0
    self._written: str | None = None  # of its text; None: not even its heading

  def show(self, rollout: types.Rollout) -> None:
    """Writes what has come since the last call."""
    while self._row < len(rollout.lengths):
      ended = rollout.finish_reasons[self._row] >= 0
      length = rollout.lengths[self._row]
      text = self._decoder.decode(rollout.tokens[self._row, :length])
      if not ended:
        text = text.rstrip("\ufffd")  # bytes of a character still to come
      if self._written is None:
        self._out.write(self._heading())
        self._written = ""
      self._out.write(text[len(self._written) :])
      self._written = text
      if not ended:
        break
      self._out.write("\n")
      self._row, self._written = self._row + 1, None
    self._out.flush()

  def _heading(self) -> str:
    if len(self._prompts) * self._samples == 1:
      return ""
    prompt, sample = divmod(self._row, self._samples)
    words = f"--- {self._prompts[prompt]}"
    if self._samples > 1:
      words += f" [sample {sample + 1} of {self._samples}]"
    return words + "\n"


def _closing(rollout: types.Rollout) -> str:
  count = len(rollout.lengths)
  words = (
    f"{count} completion{'s' * (count > 1)}, {rollout.lengths.sum()} tokens"
  )
  endings = {
    "length": f"cut at --max-new-tokens {rollout.requests.max_new_tokens}",
    "error": "ended where the logits are not finite",
  }
  for reason, ending in endings.items():
    index = types.FINISH_REASONS.index(reason)
    if count := int((rollout.finish_reasons == index).sum()):
      words += f"; {count} {ending}"
  return words


if __name__ == "__main__":
  compile_cache.enable()
  sys.exit(main())
