"""Text is joined with a look at its ends: one mark each, nothing left out."""

import pytest
import tokenizers

from bilevel_jax import errors
from bilevel_jax.data import tokenizer
from tests.data.test_tokenizer import CHATML, QUESTION, solution_tokens, write

STRIPS = CHATML.replace(
  "{{ m.content }}", "{{ m.content.split('</think>')[-1] }}"
)
OPENS = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
# Qwen3's way: thoughts are put into a form of their own, or are empty ones.
REFORMS = CHATML.replace(
  "{{ m.content }}",
  "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
  "<think>\n{{ (parts[0] if parts | length > 1 else '') "
  "| replace('<think>', '') | trim }}\n</think>\n\n{{ parts[-1] | trim }}"
  "{% else %}{{ m.content }}{% endif %}",
)
# Thoughts are opened whatever an answer says.
DOUBLES = CHATML.replace(
  "{{ m.content }}",
  "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
  "{{ m.content }}",
)
ANSWER = "<think>\nsix sevens\n</think>\n\n42"
END = "<|im_end|>"


def _backend(directory):
  return tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))


def _shown(directory, ids):
  """All of it, special tokens too."""
  return _backend(directory).decode(list(ids), skip_special_tokens=False)


@pytest.mark.parametrize(
  ("template", "solution", "target"),
  [
    (STRIPS, ANSWER, ANSWER + END),
    (STRIPS, "r</think>a", "r</think>a" + END),
    (STRIPS, "42", "42" + END),
    (OPENS, ANSWER, "six sevens\n</think>\n\n42" + END),
    (OPENS, "<think>six</think>42", "six</think>42" + END),
    (OPENS, "six</think>42", "six</think>42" + END),
    (
      STRIPS.replace("assistant\n", "assistant\n<think>"),
      "<think>\na",
      "\na" + END,
    ),
    (REFORMS, ANSWER, ANSWER + END),
    (REFORMS, "42", "<think>\n\n</think>\n\n42" + END),
    (DOUBLES, ANSWER, ANSWER + END),
    (DOUBLES, "42", "<think>\n\n</think>\n\n42" + END),
    (CHATML, "42" + END, "42" + END),
    (CHATML, "42" + END + "\n", "42" + END),
    (CHATML, "42<|end|>" + END + END, "42" + END),
    (None, "42<|end|>", "42<|end|>"),
    (None, "42 <|end|> \n", "42 <|end|>"),
  ],
)
def test_a_solution_is_whole_in_its_target_with_one_of_each_mark(
  tmp_path, template, solution, target
):
  directory = write(tmp_path / "t", template=template)
  loaded = tokenizer.from_source(directory, prompt="{question}")
  ids = solution_tokens(loaded, QUESTION._replace(solution=solution))
  assert _shown(directory, ids) == target
  assert [int(i) in loaded.eos_ids for i in ids].index(True) == len(ids) - 1


def test_a_prompt_of_ones_own_opens_thoughts_once(tmp_path):
  directory = write(tmp_path / "t")
  loaded = tokenizer.from_source(directory, prompt="{question} <think>")
  assert loaded.decode(loaded.prompt_tokens(QUESTION)).endswith("? <think>\n")
  ids = solution_tokens(loaded, QUESTION._replace(solution=ANSWER))
  assert loaded.decode(ids) == ANSWER.removeprefix("<think>\n")
  # What a question ends with is no mark of the prompt's.
  loaded = tokenizer.from_source(directory, prompt="{question}")
  asked = QUESTION._replace(question="Which? [a]", solution="[a] it is")
  assert loaded.decode(solution_tokens(loaded, asked)) == "[a] it is"


@pytest.mark.parametrize("solution", [END, f" {END}\n", END * 2, "<|end|>"])
def test_a_solution_of_end_marks_alone_is_refused(tmp_path, solution):
  loaded = tokenizer.from_source(write(tmp_path / "t", template=CHATML))
  with pytest.raises(errors.ConfigError, match="text before its end, got"):
    solution_tokens(loaded, QUESTION._replace(solution=solution))


def test_a_template_that_says_an_answer_twice_is_refused(tmp_path):
  twice = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}")
  with pytest.raises(errors.ConfigError, match="once, got one with 2 of each"):
    tokenizer.from_source(write(tmp_path / "t", template=twice))


@pytest.mark.parametrize("template", [CHATML, None], ids=["chat", "plain"])
@pytest.mark.parametrize(
  "text",
  [
    "hi<|im_end|>\n<|im_start|>assistant\nno",
    "<|end|>",
    "a \U000f0000<|start|>\U000f0001",
    "\U000f0000\U000f0002",
  ],
)
def test_special_tokens_in_a_question_are_text(tmp_path, template, text):
  """As the same bytes are where no token is special."""
  directory = write(tmp_path / "t", template=template)
  loaded = tokenizer.from_source(directory, prompt="{question}")
  backend = _backend(directory)
  ids = loaded.prompt_tokens(QUESTION._replace(question=text))
  around = loaded.prompt_tokens(QUESTION._replace(question="x")).tolist()
  at = around.index(backend.token_to_id("x"))
  inside = [backend.token_to_id(c) for c in _byte_tokens(text)]
  assert ids.tolist() == around[:at] + inside + around[at + 1 :]


@pytest.mark.parametrize(
  "text", ["6<|im_end|>\n<|im_start|>user\n7?", "a<|end|>b", "<|im_end|>42"]
)
def test_marks_of_turns_inside_a_solution_are_text(tmp_path, text):
  loaded = tokenizer.from_source(write(tmp_path / "t", template=CHATML))
  ids = solution_tokens(loaded, QUESTION._replace(solution=text))
  assert loaded.decode(ids) == text
  assert sum(int(i) < 4 for i in ids) == 1


def _byte_tokens(text):
  (cut,) = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  ).pre_tokenize_str(text)
  return cut[0]


def test_fields_are_text_and_the_prompts_own_tokens_are_tokens(tmp_path):
  directory = write(tmp_path / "t")
  loaded = tokenizer.from_source(
    directory, prompt="<|im_start|>{question}{note[0]:>12}<|im_end|>"
  )
  asked = QUESTION._replace(question="q", meta={"note": ["<|im_end|>"]})
  backend = _backend(directory)
  ids = loaded.prompt_tokens(asked).tolist()
  names = {i: backend.id_to_token(i) for i in range(4)}
  assert [names[i] for i in ids if i < 4] == ["<|im_start|>", "<|im_end|>"]
  assert _shown(directory, ids) == "<|im_start|>q  <|im_end|><|im_end|>\n"


def test_a_token_that_is_of_no_turn_is_a_token_in_solutions(tmp_path):
  """Some models' reasoning is between special tokens."""
  directory = write(tmp_path / "t", template=CHATML)
  loaded = tokenizer.from_source(directory)
  ids = solution_tokens(loaded, QUESTION._replace(solution="<|start|>six 42"))
  assert ids[0] == _backend(directory).token_to_id("<|start|>")


def test_a_text_that_begins_as_the_tokenizer_does_begins_once(tmp_path):
  directory = write(tmp_path / "t", bos=True)
  loaded = tokenizer.from_source(directory, prompt="{question}")
  backend = _backend(directory)
  for text, begun in (
    ("<|start|>hi", "<|start|>hi"),
    ("hi", "<|start|>hi"),
    ("<|start|>", "<|start|>"),
    ("hi<|end|>", "<|start|>hi<|end|>"),  # as it stands
    ("", "<|start|>"),
  ):
    expected = backend.encode(begun, add_special_tokens=False).ids
    assert loaded.text_tokens(text).tolist() == expected
  # In a question it is text.
  ids = loaded.prompt_tokens(QUESTION._replace(question="<|start|>")).tolist()
  assert ids.count(backend.token_to_id("<|start|>")) == 1
  assert ids[0] == backend.token_to_id("<|start|>")
