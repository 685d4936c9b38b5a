"""Text to tokens and back: a Hugging Face tokenizer with its chat template.

A demonstration holds exactly the tokens that the policy would have to produce,
and nothing after the token that ends its last turn (`data.dialogues`).
"""

import itertools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bilevel_jax import errors, types
from bilevel_jax.data import (
  chat_templates,
  dates,
  dialogues,
  json_lines,
  settings,
  special_tokens,
  tokenizer_files,
)


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
    is_chat = wanted.use_chat_template and has_template
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
    asks = is_chat and "strftime_now" in str(tokenizer.chat_template)
    self.date = (wanted.date or dates.now()) if asks else None
    self._chat: dialogues.ChatTemplate | None = None
    frame = wanted.prompt + "\n"
    self._opening = special_tokens.opening_mark(frame.rpartition("}")[2])
    frame = frame.removesuffix(self._opening)
    if is_chat:
      self._chat = self._chat_template(wanted)
      frame = self._chat.frame
      if self._chat.end_id is not None:
        end_id = self._chat.end_id
        eos_ids.append(end_id)
    if end_id is None:
      raise errors.ConfigError(
        f"the tokenizer in {files} must name what ends a text, got no "
        "eos_token in tokenizer_config.json and no eos_token_id in "
        "generation_config.json"
      )
    self.end_id = end_id
    self.eos_ids = tuple(sorted(set(eos_ids)))
    # In a solution the others are tokens: they neither begin nor end a turn.
    ends = {*self.eos_ids, tokenizer.bos_token_id}
    self._kept = {
      token
      for token, number in self._special.ids.items()
      if number not in ends and token not in frame
    }
    pad_id = tokenizer.pad_token_id
    self.pad_id: int = end_id if pad_id is None else pad_id

  def _chat_template(
    self, wanted: settings.Tokenizer
  ) -> dialogues.ChatTemplate:
    try:
      template = self._tokenizer.get_chat_template()
    except ValueError as error:
      raise errors.ConfigError(
        "the chat template must render a dialogue, got "
        f"{tokenizer_files.one_line(error)}"
      ) from error
    for name in chat_templates.RESERVED & wanted.chat_template_kwargs.keys():
      raise errors.ConfigError(
        f"tokenizer.chat_template_kwargs must not have {name}"
      )
    if self.date is not None:
      template = dates.macro(self.date) + template
    return dialogues.ChatTemplate(
      template,
      self._special,
      {**self._tokenizer.special_tokens_map, **wanted.chat_template_kwargs},
      wanted.system_prompt,
    )

  def prompt_tokens(self, question: types.Question) -> np.ndarray:
    """Returns int32 ids [n] of the prompt, up to where an answer starts.

    Raises:
      ConfigError: the question cannot be put into the prompt or encoded.
    """
    return self._array(self._first(self._prompt_text(question), question))

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
    return self._array(self._after_bos(self._as_it_stands(text)))

  def demonstrations(
    self, question: types.Question
  ) -> list[types.Demonstration]:
    """Returns the demonstrations that a question with its solution makes.

    A dialogue makes one of all its turns, or one of each where the template
    renders a turn otherwise once it is answered. Their `id` is 0.

    Raises:
      ConfigError: there is no solution, it cannot be encoded, or the template
        leaves out a part of it.
    """
    if question.solution is None:
      raise errors.ConfigError(
        f"question {question.id} must have a solution to be a demonstration"
      )
    return [
      self._encoded(target, question) for target in self._targets(question)
    ]

  def _targets(self, question: types.Question) -> list[dialogues.Target]:
    dialogue = question.dialogue
    if dialogue is not None and not dialogue.turns:
      before = self._as_it_stands(question.question)
      text = before + self._as_it_stands(self._solution(question))
      eos_id = self._tokenizer.eos_token_id
      return [
        dialogues.Target(
          text,
          len(before),
          [(len(before), len(text) + 1, 1.0)],
          self.end_id if eos_id is None else eos_id,
        )
      ]
    turns, weights = self._turns(question)
    if dialogue is None:
      solution = self._special.escaped(self._solution(question), self._kept)
      turns = [*turns, {"role": "assistant", "content": solution}]
      weights = [*weights, 1.0]
    if self._chat is not None:
      return self._chat.targets(
        turns,
        weights,
        dialogue or types.Dialogue(),
        self.end_id,
        self.eos_ids,
      )
    return dialogues.line_targets(
      dialogues.with_system(turns, self._system_prompt),
      weights,
      self._opening,
      self.end_id,
    )

  def _encoded(
    self, target: dialogues.Target, question: types.Question
  ) -> types.Demonstration:
    end = len(target.text)
    cuts = {target.prompt, *(x for span in target.spans for x in span[:2])}
    inside = sorted(cuts - {0, end, end + 1})
    ids = self._first(target.text, question)
    starts = [self._first(target.text[:cut], question) for cut in inside]
    if any(ids[: len(start)] != start for start in starts):
      # Tokens reach over a cut, where what is sampled begins with another.
      pieces = [
        target.text[a:b] for a, b in itertools.pairwise([0, *inside, end])
      ]
      parts = [self._first(pieces[0], question)]
      parts += [
        self._special.encode(piece, self._encode) for piece in pieces[1:]
      ]
      ids = [number for part in parts for number in part]
      counts = list(itertools.accumulate(map(len, parts[:-1])))
    else:
      counts = list(map(len, starts))
    ids = [*ids, target.end_id]
    place = {0: 0, end: len(ids) - 1, end + 1: len(ids)}
    place.update(zip(inside, counts, strict=True))
    first = place[target.prompt]
    weights = np.zeros(len(ids), np.float32)
    for start, stop, weight in target.spans:
      weights[place[start] : place[stop]] = weight
    is_usual = not weights[:first].any() and (weights[first:] == 1).all()
    return types.Demonstration(
      0,
      self._array(ids[:first]),
      self._array(ids[first:]),
      token_weights=None if is_usual else weights,
    )

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
    """The prompt with escapes."""
    dialogue = question.dialogue
    if dialogue is not None and not dialogue.turns:
      return self._as_it_stands(question.question)
    turns, _ = self._turns(question)
    if dialogue is not None:
      turns = turns[: dialogue.asked]
    if self._chat is not None:
      return self._chat.prompt(turns, dialogue or types.Dialogue())
    return dialogues.lines(dialogues.with_system(turns, self._system_prompt))

  def _turns(
    self, question: types.Question
  ) -> tuple[list[dialogues.Turn], list[float]]:
    """The turns with escapes, and the weight of each one's loss."""
    if question.dialogue is None:
      return [{"role": "user", "content": self._user_text(question)}], [0.0]
    turns = question.dialogue.turns
    escape_own = lambda text: self._special.escaped(
      self._without_end(text), self._kept
    )
    escaped = [
      dialogues.escaped(turn, escape_own, self._special.escaped)
      for turn in turns
    ]
    return escaped, dialogues.loss_weights(turns)

  def _as_it_stands(self, text: str) -> str:
    return self._special.escaped(text, self._special.ids)

  def _solution(self, question: types.Question) -> str:
    given = question.solution or ""
    solution = self._without_end(given)
    if given.strip() and not solution.strip():
      raise errors.ConfigError(
        f"question {question.id} must have a solution with a text before its "
        f"end, got {given!r}"
      )
    return solution

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

  def _without_end(self, text: str) -> str:
    """The text without the marks that end a turn where it ends in them."""
    ends = [t for t, i in self._special.ids.items() if i in self.eos_ids]
    while end := next(filter(text.rstrip().endswith, ends), None):
      text = text.rstrip().removesuffix(end)
      text = text if self._chat is None else self._chat.without_end(text)
    return text

  def _first(self, text: str, question: types.Question) -> list[int]:
    """Ids of a text with escapes that a sequence begins with."""
    dialogue = question.dialogue
    is_text = dialogue is not None and not dialogue.turns
    if self._chat is None or is_text:
      return self._after_bos(text)
    return self._special.encode(text, self._encode)

  def _after_bos(self, text: str) -> list[int]:
    """Ids of a text with escapes, after what starts every text, once."""
    bare = self._special.restored(text)
    ids = self._encode(bare)
    whole = self._encode(bare, add_special_tokens=True)
    starts = range(len(whole) - len(ids) + 1 if ids else 0)
    at = next((i for i in starts if whole[i : i + len(ids)] == ids), None)
    if at is None:
      while whole and whole[-1] in self.eos_ids:  # some end every text
        whole.pop()
      return whole
    begin, ids = whole[:at], self._special.encode(text, self._encode)
    return ids if ids[:at] == begin else begin + ids

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
  settings.check_prompt(wanted.prompt)
  if wanted.date is not None:
    dates.moment(wanted.date)
  directory = tokenizer_files.directory(source)
  tokenizer = tokenizer_files.read(directory)
  if wanted.chat_template is not None:
    tokenizer.chat_template = wanted.chat_template
  return Tokenizer(tokenizer, directory, wanted)
