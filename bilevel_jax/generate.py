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
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn, TextIO

import jax
import numpy as np
import rich.console

from bilevel_jax import compile_cache, config, loading, types
from bilevel_jax.data import tokenizer as tokenizer_lib
from bilevel_jax.rollout import engine, sampling

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
) -> loading.Model:
  """Returns a model on one device, ready for `complete`.

  Args:
    source: a run directory or its export, a Hugging Face directory, a hub id
      or a .gguf file.
    revision: branch, tag or commit of a hub id.
    system: system message; default: the run's, none without a run.
    template: the user's turn, with {question} where a prompt goes; default:
      the run's, the prompt itself without a run.
    dtype: float32 or bfloat16, of weights and cache; default: float32 on a
      CPU, else bfloat16.

  Raises:
    ConfigError: it cannot be found, read, or put together.
  """
  wording = loading.wording(
    source,
    config.Tokenizer(prompt="{question}"),
    system=system,
    template=template,
  )
  with tempfile.TemporaryDirectory() as scratch:
    return loading.load(
      source, pathlib.Path(scratch), wording, revision=revision, dtype=dtype
    )


def complete(
  model: loading.Model,
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
    model: from `load`, or `train.Step.model`.
    prompts: P texts, put into the model's template.
    samples: G of each prompt.
    max_new_tokens: longest completion, EOS included.
    sampling: how tokens are drawn.
    stop: texts that end a completion, and are kept.
    seed: of the draws.
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


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    self.exit(2, f"error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, 2 for what the user can mend, 130 interrupted."""
  options = _parse(arguments)
  try:
    rollout = _generate(options, sys.stdout)
  except (config.ConfigError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(file=sys.stderr)
    return 130
  print(_closing(rollout), file=sys.stderr)
  return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = _Parser(
    prog="python -m bilevel_jax.generate",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--weights", required=True, help="where the model is")
  add("--revision", help="branch, tag or commit of a hub id")
  add(
    "--prompt", action="append", default=[], metavar="TEXT", help="repeatable"
  )
  add(
    "--prompt-file",
    metavar="FILE",
    help="a prompt on each line that is not blank; - is stdin",
  )
  add(
    "--samples",
    type=int,
    default=1,
    metavar="N",
    help="of each prompt (default 1)",
  )
  add(
    "--seed",
    type=int,
    default=0,
    metavar="N",
    help="same seed, same text (default 0)",
  )
  add(
    "--temperature",
    type=float,
    default=1.0,
    metavar="X",
    help="0 is greedy (default 1)",
  )
  add(
    "--top-p",
    type=float,
    default=1.0,
    metavar="X",
    help="nucleus kept (default 1)",
  )
  add("--top-k", type=int, default=0, metavar="N", help="0 keeps all (default)")
  add(
    "--min-p",
    type=float,
    default=0.0,
    metavar="X",
    help="least share of the top token's",
  )
  add(
    "--max-new-tokens",
    type=int,
    default=256,
    metavar="N",
    help="a completion (default 256)",
  )
  add(
    "--stop",
    action="append",
    default=[],
    metavar="TEXT",
    help="ends a completion, and is kept; repeatable",
  )
  add("--system", metavar="TEXT", help="system message")
  add(
    "--template",
    metavar="TEXT",
    help="the user's turn, with {question} where the prompt goes",
  )
  add(
    "--raw", action="store_true", help="no template: continue the prompt itself"
  )
  add(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="of weights and cache (default float32 on a CPU, else bfloat16)",
  )
  return parser.parse_args(arguments)


def _generate(options: argparse.Namespace, out: TextIO) -> types.Rollout:
  texts = _prompts(options)
  drawing = types.Sampling(
    temperature=options.temperature,
    top_p=options.top_p,
    top_k=options.top_k,
    min_p=options.min_p,
  )
  _check(options, drawing)
  with rich.console.Console(stderr=True).status(f"reading {options.weights}"):
    model = load(
      options.weights,
      revision=options.revision,
      system=options.system,
      template=options.template,
      dtype=options.dtype,
    )
  return complete(
    model,
    texts,
    samples=options.samples,
    max_new_tokens=options.max_new_tokens,
    sampling=drawing,
    stop=options.stop,
    seed=options.seed,
    raw=options.raw,
    segment=_SEGMENT,
    watch=_Printer(model.tokenizer, texts, options.samples, out).show,
  ).rollout


def _prompts(options: argparse.Namespace) -> list[str]:
  prompts = list(options.prompt)
  if options.prompt_file is not None:
    path = options.prompt_file
    try:
      text = (
        sys.stdin.read()
        if path == "-"
        else pathlib.Path(path).read_text(encoding="utf-8")
      )
    except UnicodeDecodeError as error:
      raise config.ConfigError(
        f"--prompt-file must be UTF-8 text, got {path}: {error}"
      ) from None
    prompts += [line for line in text.splitlines() if line.strip()]
  if not prompts:
    raise config.ConfigError(
      "--prompt or --prompt-file must give a prompt, got none"
    )
  return prompts


def _check(options: argparse.Namespace, drawing: types.Sampling) -> None:
  for name in ("samples", "max_new_tokens"):
    if (value := getattr(options, name)) < 1:
      flag = name.replace("_", "-")
      raise config.ConfigError(f"--{flag} must be at least 1, got {value}")
  if options.raw and (options.system is not None or options.template):
    raise config.ConfigError(
      "--raw must stand without --system and --template, got both"
    )
  try:
    sampling.rules(drawing, 1)
    sampling.key(options.seed)
  except ValueError as error:
    message = str(error).replace("sampling.", "--").replace("_", "-")
    raise config.ConfigError(message) from None


def _tokens(
  tokenizer: tokenizer_lib.Tokenizer, text: str, raw: bool
) -> np.ndarray:
  if not raw:
    return tokenizer.prompt_tokens(
      types.Question(id="", question=text, answer="", solution=None, meta={})
    )
  tokens = tokenizer.text_tokens(text)
  if not len(tokens):
    raise config.ConfigError(f"a prompt must have a token, got {text!r}")
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
