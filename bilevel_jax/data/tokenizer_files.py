"""The files of a tokenizer: where they are, and what they say."""

import json
import logging
import pathlib
from collections.abc import Container
from typing import Any

from bilevel_jax import errors

CHARACTERS = "0123456789+-*/()=?.,:#; \n{}\\abcdefghijklmnopqrstuvwxyz"
_HUB_FILES = (
  "tokenizer*",
  "vocab*",
  "merges.txt",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template*",
  "config.json",
  "generation_config.json",
)


def directory(source: str | pathlib.Path) -> pathlib.Path:
  """Returns the directory that a source names, fetched if it is a hub id.

  Raises:
    ConfigError: it is neither a directory nor on the hub.
  """
  path = pathlib.Path(source)
  if path.is_dir():
    return path
  if path.exists():
    raise errors.ConfigError(
      f"tokenizer.path must be a directory or a hub id, got the file {source}"
    )
  import huggingface_hub

  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        str(source), allow_patterns=list(_HUB_FILES)
      )
    )
  except Exception as error:  # network, rights, names: a zoo of exceptions
    raise errors.ConfigError(
      f"tokenizer.path must be a directory or a hub id, got {str(source)!r}, "
      f"which is no directory here and could not be fetched: "
      f"{one_line(error)}"
    ) from error


def read(directory: pathlib.Path) -> Any:
  """Returns the tokenizer of a directory, as transformers reads it.

  Raises:
    ConfigError: no file of it can be read.
  """
  transformers = _transformers()
  try:
    # tokenizer.json says everything. AutoTokenizer would rebuild parts of it
    # from the class that tokenizer_config.json names, and so lose, for one,
    # SmolLM2's splitting of digits.
    if (directory / "tokenizer.json").exists():
      return transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    return transformers.AutoTokenizer.from_pretrained(
      directory, trust_remote_code=False
    )
  except Exception as error:  # each format has its own ways to be broken
    raise errors.ConfigError(
      f"{directory} must hold a readable tokenizer (tokenizer.json), got "
      f"{type(error).__name__}: {one_line(error)}"
    ) from error


def _transformers() -> Any:
  # Without torch, transformers says so once; its tokenizers do not need it.
  logger = logging.getLogger("transformers")
  quiet = lambda record: "PyTorch was not found" not in record.getMessage()
  logger.addFilter(quiet)
  try:
    import transformers
  finally:
    logger.removeFilter(quiet)
  return transformers


def eos_ids(path: pathlib.Path, known: Container[int]) -> list[int]:
  """Returns `eos_token_id` of a JSON file, [] where there is none.

  Raises:
    ConfigError: no JSON object, or an id that is not known.
  """
  if not path.exists():
    return []
  try:
    eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
  except (ValueError, RecursionError, AttributeError, OSError) as error:
    raise errors.ConfigError(
      f"{path} must be a JSON object, got: {one_line(error)}"
    ) from error
  eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
  if not all(type(token) is int for token in eos):
    raise errors.ConfigError(
      f"eos_token_id in {path} must be an integer or a list of integers, got "
      f"{eos!r}"
    )
  for token in eos:
    if token not in known:
      raise errors.ConfigError(
        f"eos_token_id in {path} must be the id of a token of the tokenizer, "
        f"got {token}"
      )
  return eos


def one_line(error: Exception) -> str:
  """Returns an error's message without line breaks, 300 characters at most."""
  return " ".join(str(error).split())[:300]


def character_tokenizer(directory: str | pathlib.Path) -> None:
  """Writes a tokenizer with one token per character, for tiny policies.

  Id 0 is <pad>, 1 is <eos>, then come `CHARACTERS` in order. There is no
  unknown token: any other character is a ConfigError when it is encoded, for a
  policy cannot learn from what it cannot see.

  Args:
    directory: where to write; made if need be.
  """
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers

  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  special = ["<pad>", "<eos>"]
  vocabulary = {token: i for i, token in enumerate([*special, *CHARACTERS])}
  tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary))
  tokenizer.pre_tokenizer = pre_tokenizers.Split(
    tokenizers.Regex(r"[\s\S]"), "isolated"
  )
  tokenizer.decoder = decoders.Fuse()
  tokenizer.add_special_tokens(special)
  tokenizer.save(str(directory / "tokenizer.json"))
  _write_json(
    directory / "tokenizer_config.json",
    {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "pad_token": special[0],
      "eos_token": special[1],
      "clean_up_tokenization_spaces": False,
    },
  )
  _write_json(
    directory / "generation_config.json",
    {"eos_token_id": vocabulary["<eos>"], "pad_token_id": vocabulary["<pad>"]},
  )


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
