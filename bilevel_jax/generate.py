"""Prints completions of prompts, as they are sampled.

WEIGHTS is a run directory or its export, a Hugging Face directory, a hub id or
a .gguf file. A prompt is put as the run put its questions; without a run, it
is the user's turn of the chat template, or a line of its own where there is
none. With --raw it is continued as it stands.

  python -m bilevel_jax.generate --weights runs/mine --prompt "What is 17 + 25?"

Completions go to stdout in order, the first unfinished one as it grows; how
they ended goes to stderr.
"""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import NoReturn, TextIO

import jax
import numpy as np
import rich.console

from bilevel_jax import compile_cache, config, loading, types
from bilevel_jax.data import tokenizer as tokenizer_lib
from bilevel_jax.rollout import engine, sampling

_SEGMENT = 8  # tokens between two looks at what came


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    self.exit(2, f"error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, 2 for what the user can mend, 130 interrupted."""
  options = _parse(arguments)
  try:
    with tempfile.TemporaryDirectory() as scratch:
      rollout = _generate(options, pathlib.Path(scratch), sys.stdout)
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


def _generate(
  options: argparse.Namespace, scratch: pathlib.Path, out: TextIO
) -> types.Rollout:
  texts = _prompts(options)
  drawing = types.Sampling(
    temperature=options.temperature,
    top_p=options.top_p,
    top_k=options.top_k,
    min_p=options.min_p,
  )
  _check(options, drawing)
  screen = rich.console.Console(stderr=True)
  with screen.status(f"reading {options.weights}"):
    model = loading.load(
      options.weights,
      scratch,
      loading.wording(
        options.weights,
        config.Tokenizer(prompt="{question}"),
        system=options.system,
        template=options.template,
      ),
      revision=options.revision,
      dtype=options.dtype,
    )
  prompts = [_tokens(options, model.tokenizer, text) for text in texts]
  longest = max(map(len, prompts)) + options.max_new_tokens
  if longest > model.architecture.max_positions:
    raise config.ConfigError(
      f"the longest prompt and --max-new-tokens {options.max_new_tokens} come "
      f"to {longest} tokens, but the model has "
      f"{model.architecture.max_positions} positions"
    )
  printer = _Printer(model.tokenizer, texts, options.samples, out)
  return engine.generate(
    model.policy,
    model.weights,
    types.Requests(
      prompts=prompts,
      prompt_ids=np.arange(len(prompts), dtype=np.uint32),
      samples_per_prompt=options.samples,
      max_new_tokens=options.max_new_tokens,
      eos_ids=model.tokenizer.eos_ids,
      sampling=drawing,
      key=jax.random.key(options.seed),
      stop=tuple(options.stop),
    ),
    decode=model.tokenizer.decode,
    segment=_SEGMENT,
    watch=lambda segment: printer.show(segment.so_far),
  )


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
  except ValueError as error:
    message = str(error).replace("sampling.", "--").replace("_", "-")
    raise config.ConfigError(message) from None


def _tokens(
  options: argparse.Namespace, tokenizer: tokenizer_lib.Tokenizer, text: str
) -> np.ndarray:
  if not options.raw:
    return tokenizer.prompt_tokens(
      types.Question(id="", question=text, answer="", solution=None, meta={})
    )
  tokens = tokenizer.text_tokens(text)
  if not len(tokens):
    raise config.ConfigError(f"--prompt must have a token, got {text!r}")
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
