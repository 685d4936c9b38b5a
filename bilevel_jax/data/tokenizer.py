"""Text to tokens and back: a Hugging Face tokenizer with its chat template.

The prompt is what the chat template renders with a generation prompt; the
solution is what the template renders after that, up to and with the token
that ends the assistant's turn. So a demonstration holds exactly the tokens
that the policy would have to produce, and nothing after its EOS.
"""

import json
import pathlib
import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bilevel_jax import errors, types
from bilevel_jax.data import (
  chat_templates,
  dates,
  json_lines,
  settings,
  special_tokens,
  tokenizer_files,
)

CHARACTERS = "0123456789+-*/()=?.,:#; \n{}\\abcdefghijklmnopqrstuvwxyz"

_PROBE = "PROBE"


class Tokenizer:
  """A tokenizer, the prompt it makes of a question, and what ends a turn.

  Attributes:
    files: the directory that it was read from.
    vocab_size: the largest token id plus one.
    eos_ids: every id that ends a completion: those of generation_config.json,
      the tokenizer's own, and the one that the chat template ends a turn with.
    end_id: the one of them that ends a demonstration.
    date: date and time that the chat template is told, as the setting has it;
      None: it does not ask.
    pad_id: the padding token's id, `end_id` where there is none. Nothing may
      be inferred from it: it can be an EOS.
  """

  def __init__(
    self, tokenizer: Any, files: pathlib.Path, wanted: settings.Tokenizer
  ):
    self.files = files
    self._tokenizer = tokenizer
    self._system_prompt = wanted.system_prompt
    self._prompt = wanted.prompt
    has_template = tokenizer.chat_template is not None
    self._chat = wanted.use_chat_template and has_template
    known = set(self.vocabulary().values())
    self.vocab_size = max(known) + 1
    eos_ids = tokenizer_files.eos_ids(files / "generation_config.json", known)
    tokenizer_files.eos_ids(files / "config.json", known)  # it is only checked
    if tokenizer.eos_token_id is not None:
      eos_ids.append(tokenizer.eos_token_id)
    end_id = eos_ids[-1] if eos_ids else None
    self._special = special_tokens.SpecialTokens(
      {
        str(added): token
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special
      }
    )
    asks = self._chat and "strftime_now" in str(tokenizer.chat_template)
    self.date = (wanted.date or dates.now()) if asks else None
    self._before_end = self._after_solution = ""
    if self._chat:
      self._after_solution = self._template_tail()
      before, turn_end = self._special.first(self._after_solution)
      if turn_end is not None:
        self._before_end, end_id = before, turn_end
        eos_ids.append(turn_end)
    if end_id is None:
      raise errors.ConfigError(
        f"the tokenizer in {files} must name what ends a text, got no "
        "eos_token in tokenizer_config.json and no eos_token_id in "
        "generation_config.json"
      )
    self.end_id = end_id
    self.eos_ids = tuple(sorted(set(eos_ids)))
    frame = self._render(_PROBE, None) if self._chat else wanted.prompt + "\n"
    self._opening = special_tokens.opening_mark(
      frame.rpartition(_PROBE if self._chat else "}")[2]
    )
    frame = frame.removesuffix(self._opening)
    # In a solution the others are tokens: they neither begin nor end a turn.
    ends = {*self.eos_ids, tokenizer.bos_token_id}
    self._kept = {
      token
      for token, number in self._special.ids.items()
      if number not in ends and token not in frame
    }
    pad_id = tokenizer.pad_token_id
    self.pad_id: int = end_id if pad_id is None else pad_id

  def prompt_tokens(self, question: types.Question) -> np.ndarray:
    """Returns int32 ids [n] of the prompt, up to where an answer starts.

    Raises:
      ConfigError: the question cannot be put into the prompt or encoded.
    """
    text = self._prompt_text(question)
    if self._chat:
      return self._array(self._special.encode(text, self._encode))
    return self._after_bos(text)

  def prompt_text(self, question: types.Question) -> str:
    """Returns the text of the prompt, with what the template adds.

    Raises:
      ConfigError: the question cannot be put into the prompt.
    """
    return self._special.restored(self._prompt_text(question))

  def text_tokens(self, text: str) -> np.ndarray:
    """Returns int32 ids [n] of a text to be continued, as it stands.

    Raises:
      ConfigError: it cannot be encoded.
    """
    return self._after_bos(self._special.escaped(text, self._special.ids))

  def solution_tokens(self, question: types.Question) -> np.ndarray:
    """Returns int32 ids [n] of the solution and the EOS that ends it.

    Raises:
      ConfigError: the question has no solution, or it cannot be encoded.
    """
    if question.solution is None:
      raise errors.ConfigError(
        f"question {question.id} must have a solution to be a demonstration"
      )
    solution = self._without_end(question.solution)
    if question.solution.strip() and not solution.strip():
      raise errors.ConfigError(
        f"question {question.id} must have a solution with a text before its "
        f"end, got {question.solution!r}"
      )
    solution = self._special.escaped(solution, self._kept)
    text = special_tokens.without_mark(solution, self._opening)
    if self._chat:
      user_text = self._user_text(question)
      dialogue = self._render(user_text, solution)
      prompt, tail = self._render(user_text, None), self._after_solution
      if dialogue.startswith(prompt) and dialogue.endswith(tail):
        rendered = special_tokens.without_mark(
          dialogue[len(prompt) : len(dialogue) - len(tail)], self._opening
        )
        if special_tokens.holds(rendered, text):
          text = rendered
      # Otherwise the template rewrites the prompt once it is answered, or
      # leaves out a part of the answer, and the bare solution is what would
      # follow the prompt that is sampled from.
    text += self._before_end
    return self._array([*self._special.encode(text, self._encode), self.end_id])

  def decode(self, tokens: Iterable[int]) -> str:
    """Returns the text of token ids, special tokens left out."""
    return self._tokenizer.decode(
      [int(token) for token in tokens],
      skip_special_tokens=True,
      clean_up_tokenization_spaces=False,
    )

  def vocabulary(self) -> dict[str, int]:
    """Returns every token's id."""
    return self._tokenizer.get_vocab()

  def ids_without_token(self, embedding_rows: int) -> frozenset[int]:
    """Returns the rows of an embedding that stand for no token: its padding.

    Raises:
      ConfigError: some token has no row in the embedding.
    """
    if self.vocab_size > embedding_rows:
      raise errors.ConfigError(
        f"the tokenizer in {self.files} has ids up to {self.vocab_size - 1}, "
        "they must be below the number of rows in the model's embedding, "
        f"{embedding_rows}"
      )
    return frozenset(range(embedding_rows)).difference(
      self.vocabulary().values()
    )

  def _prompt_text(self, question: types.Question) -> str:
    text = self._user_text(question)
    if self._chat:
      return self._render(text, None)
    system = self._system_prompt
    return text + "\n" if system is None else f"{system}\n{text}\n"

  def _user_text(self, question: types.Question) -> str:
    # Neither the answer nor the solution: a prompt must not give them away.
    fields = {"id": question.id, **question.meta, "question": question.question}
    try:
      return special_tokens.Fields(self._special).vformat(
        self._prompt, (), fields
      )
    except (LookupError, AttributeError, ValueError, TypeError) as error:
      raise errors.ConfigError(
        f"the prompt {self._prompt!r} must use only fields of the question "
        f"({', '.join(fields)}), got {error}"
        + (f" for question {question.id}" if question.id else "")
      ) from error

  def _render(self, user_text: str, solution: str | None) -> str:
    messages = [{"role": "user", "content": user_text}]
    if self._system_prompt is not None:
      messages.insert(0, {"role": "system", "content": self._system_prompt})
    if solution is not None:
      messages.append({"role": "assistant", "content": solution})
    try:
      template = self._tokenizer.get_chat_template()
      if self.date is not None:
        template = dates.macro(self.date) + template
      return chat_templates.render(
        template,
        messages,
        add_generation_prompt=solution is None,
        variables=self._tokenizer.special_tokens_map,
      )
    except (errors.ConfigError, ValueError) as error:
      raise errors.ConfigError(
        "the chat template must render a dialogue"
        f"{'' if self._system_prompt is None else ' with a system prompt'}, "
        f"got {tokenizer_files.one_line(error)}"
      ) from error

  def _template_tail(self) -> str:
    rendered = self._render("question", _PROBE)
    if (times := rendered.count(_PROBE)) != 1:
      raise errors.ConfigError(
        "the chat template must render the assistant's turns once, got one "
        + ("that leaves them out" if not times else f"with {times} of each")
      )
    return rendered.partition(_PROBE)[2]

  def _without_end(self, text: str) -> str:
    """The text without the marks that end a turn where it ends in them."""
    ends = [t for t, i in self._special.ids.items() if i in self.eos_ids]
    while end := next(filter(text.rstrip().endswith, ends), None):
      text = text.rstrip().removesuffix(end).removesuffix(self._before_end)
    return text

  def _after_bos(self, text: str) -> np.ndarray:
    """Ids of a text with escapes, after what starts every text, once."""
    bare = self._special.restored(text)
    ids = self._encode(bare)
    whole = self._encode(bare, add_special_tokens=True)
    starts = range(len(whole) - len(ids) + 1 if ids else 0)
    at = next((i for i in starts if whole[i : i + len(ids)] == ids), None)
    if at is None:
      while whole and whole[-1] in self.eos_ids:  # some end every text
        whole.pop()
      return self._array(whole)
    begin, ids = whole[:at], self._special.encode(text, self._encode)
    return self._array(ids if ids[:at] == begin else begin + ids)

  def _encode(
    self, text: str, as_text: bool = False, add_special_tokens: bool = False
  ) -> list[int]:
    json_lines.check_text(text, "a prompt or a solution")
    try:
      return self._tokenizer.encode(
        text,
        add_special_tokens=add_special_tokens,
        split_special_tokens=as_text,
        verbose=False,
      )
    except Exception as error:  # what the `tokenizers` package raises
      raise errors.ConfigError(
        f"the tokenizer in {self.files} must know every character of "
        f"{text[:200]!r}, got: {tokenizer_files.one_line(error)}"
      ) from error

  def _array(self, ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, np.int32)


def from_source(source: str | pathlib.Path, **fields: Any) -> Tokenizer:
  """Returns what `of_settings` does, of settings with these fields."""
  return of_settings(source, settings.Tokenizer(**fields))


def of_settings(
  source: str | pathlib.Path, wanted: settings.Tokenizer
) -> Tokenizer:
  """Returns the tokenizer of a directory or of a model on the hub.

  Args:
    source: a directory with tokenizer.json (or an older format that
      transformers reads), or a hub id; in place of the settings' path.

  Raises:
    ConfigError: nothing there, unreadable, or a bad template or prompt.
  """
  check_prompt(wanted.prompt)
  if wanted.date is not None:
    dates.moment(wanted.date)
  directory = tokenizer_files.directory(source)
  tokenizer = tokenizer_files.read(directory)
  if wanted.chat_template is not None:
    tokenizer.chat_template = wanted.chat_template
  return Tokenizer(tokenizer, directory, wanted)


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


def check_prompt(prompt: str, setting: str = "tokenizer.prompt") -> None:
  """Returns nothing if a question can be put into the text.

  Args:
    setting: what to call it in a message.

  Raises:
    ConfigError: it is no format string, or has no field.
  """
  try:
    fields = {field for _, field, _, _ in string.Formatter().parse(prompt)}
  except ValueError as error:
    raise errors.ConfigError(
      f"{setting} must be a format string (write {{{{ and }}}} for "
      f"braces), got {prompt!r}: {error}"
    ) from error
  if not fields - {None}:
    raise errors.ConfigError(
      f"{setting} must have a field such as {{question}}, got {prompt!r}"
    )
