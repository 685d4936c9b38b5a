"""The tokenizer inside a GGUF file, written as a Hugging Face directory.

A GGUF file has no tokenizer.json: it has the vocabulary, the merges, and the
name of the way in which text is cut before merging. transformers can rebuild
a tokenizer from that, but only where torch is, and does not know every name;
here each name has the cuts of the tokenizer.json that its models have.
"""

import pathlib
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gguf
import tokenizers
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from bilevel_jax import errors
from bilevel_jax.weights import families, huggingface_export
from bilevel_jax.weights import gguf as gguf_files

_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {
  "gpt2": _GPT2,
  "digits": pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), _GPT2]
  ),
  "llama3": _split(_WORDS % r"\p{N}{1,3}"),
  "qwen": _split(_WORDS % r"\p{N}"),
}
"""How text is cut before merging, as in the models' tokenizer.json."""
_CUT_OF = {
  name: cut
  for family in families.FAMILIES.values()
  for name, cut in family.gguf_tokenizers.items()
}
PRE_TOKENIZERS = {name: CUTS[cut] for name, cut in _CUT_OF.items()}
"""The same, by the name that a file has for it, tokenizer.ggml.pre."""
_SPECIAL = {
  "bos_token": "bos_token_id",
  "eos_token": "eos_token_id",
  "pad_token": "padding_token_id",
  "unk_token": "unknown_token_id",
}
# Tokens that end a text, a turn, or a message to a tool.
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def write_files(
  path: str | pathlib.Path, directory: str | pathlib.Path
) -> None:
  """Returns nothing; writes the file's tokenizer for transformers to read.

  tokenizer.json, tokenizer_config.json, generation_config.json with the ids
  that end a completion, and chat_template.jinja where the file has one.

  Args:
    path: a .gguf file with a byte-level BPE vocabulary.

  Raises:
    ConfigError: not a GGUF file, or a kind of tokenizer that is not known.
  """
  reader = gguf_files.open_file(path)

  def field(name: str, kind: type, default: Any = None, **more: Any) -> Any:
    name = f"tokenizer.ggml.{name}"
    return gguf_files.read_field(reader, name, kind, default, **more)

  tokens, types = _vocabulary(field, path)

  def token(name: str) -> int | None:
    number = field(name, int)
    if number is not None and not 0 <= number < len(tokens):
      raise errors.ConfigError(
        f"{path}: tokenizer.ggml.{name} must be below the number of tokens, "
        f"{len(tokens)}, got {number}"
      )
    return number

  ids = {name: token(key) for name, key in _SPECIAL.items()}
  ends = sorted({i for name in _ENDS if (i := token(name)) is not None})
  template = gguf_files.read_field(reader, "tokenizer.chat_template", str)
  backend = _backend(field, tokens, ids, path)
  for text, type_ in zip(tokens, types, strict=True):
    if type_ in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED):
      control = type_ == gguf.TokenType.CONTROL
      added = tokenizers.AddedToken(text, special=control, normalized=False)
      add = backend.add_special_tokens if control else backend.add_tokens
      add([added])
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  backend.save(str(directory / "tokenizer.json"))
  huggingface_export.write_json(
    directory / "tokenizer_config.json",
    {
      # What reads tokenizer.json as it is: a class named after a model would
      # put its own pre-tokenizer in.
      "tokenizer_class": "PreTrainedTokenizerFast",
      **{k: tokens[i] for k, i in ids.items() if i is not None},
      "clean_up_tokenization_spaces": False,
    },
  )
  generation = {
    "bos_token_id": ids["bos_token"],
    "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    "pad_token_id": ids["pad_token"],
  }
  huggingface_export.write_json(
    directory / "generation_config.json",
    {k: v for k, v in generation.items() if v is not None},
  )
  if template is not None:
    (directory / "chat_template.jinja").write_text(template, "utf-8")


def _vocabulary(
  field: Callable[..., Any], path: str | pathlib.Path
) -> tuple[list[str], list[int]]:
  tokens = field("tokens", list, each=str)
  if not tokens:
    raise errors.ConfigError(f"{path} must hold a tokenizer, got none")
  normal = [gguf.TokenType.NORMAL] * len(tokens)
  types = field("token_type", list, normal, each=int)
  # An embedding's spare rows have placeholders, which no published vocabulary
  # has; without them ids above the real ones do not exist.
  used = [i for i, kind in enumerate(types) if kind != gguf.TokenType.UNUSED]
  if len(types) != len(tokens) or not used:
    raise errors.ConfigError(
      f"{path}: tokenizer.ggml.token_type must have the types of "
      f"{len(tokens)} tokens, got {reprlib.repr(types)}"
    )
  return tokens[: used[-1] + 1], types[: used[-1] + 1]


def _backend(
  field: Callable[..., Any],
  tokens: Sequence[str],
  ids: Mapping[str, int | None],
  path: str | pathlib.Path,
) -> tokenizers.Tokenizer:
  kind, pre = field("model", str), field("pre", str)
  if kind != "gpt2":
    raise errors.ConfigError(
      f"{path}: tokenizer.ggml.model must be gpt2 (byte-level BPE), got "
      f"{kind!r}"
    )
  if pre not in PRE_TOKENIZERS:
    raise errors.ConfigError(
      f"{path}: tokenizer.ggml.pre must be one of {', '.join(PRE_TOKENIZERS)}, "
      f"got {pre!r}"
    )
  cut = _CUT_OF[pre]
  llama3 = cut == "llama3"
  merges = field("merges", list, [], each=str)
  try:
    model = models.BPE(
      {token: i for i, token in enumerate(tokens)},
      [tuple(merge.split(" ")) for merge in merges],
      # Llama 3 takes a word that is in the vocabulary without merging it.
      ignore_merges=llama3,
    )
  except Exception as error:  # what the `tokenizers` package raises
    raise errors.ConfigError(
      f"{path}: tokenizer.ggml.merges must be pairs of tokens, got: "
      + " ".join(str(error).split())
    ) from error
  backend = tokenizers.Tokenizer(model)
  if cut == "qwen":
    backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = CUTS[cut]
  backend.decoder = decoders.ByteLevel()
  backend.post_processor = _ends(
    tokens,
    ids["bos_token"] if field("add_bos_token", bool, llama3) else None,
    ids["eos_token"] if field("add_eos_token", bool, False) else None,
  )
  return backend


def _ends(tokens: Sequence[str], bos: int | None, eos: int | None) -> Any:
  byte_level = processors.ByteLevel(trim_offsets=False)
  if bos is None and eos is None:
    return byte_level
  before, after = ([] if i is None else [tokens[i]] for i in (bos, eos))
  template = processors.TemplateProcessing(
    single=[*before, "$A", *after],
    special_tokens=[(tokens[i], i) for i in (bos, eos) if i is not None],
  )
  return processors.Sequence([byte_level, template])
