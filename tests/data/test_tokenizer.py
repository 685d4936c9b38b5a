"""The tokens of prompts and solutions, against what the template renders."""

import json
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from bilevel_jax import errors, types
from bilevel_jax.data import tokenizer, tokenizer_files

CHATML = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen3's: an answer without thoughts is rendered with empty ones.
THINKING = CHATML.replace(
  "{{ m.content }}",
  "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
  "{{ m.content }}",
)
# No generation prompt: the policy writes the assistant's header itself.
NO_GENERATION_PROMPT = (
  "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
)
# Llama 2's way: the header is part of the user's turn.
TRIMMED = (
  "<|start|>{% for m in messages %}{% if m.role == 'user' %}"
  "[INST] {{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} "
  "<|end|>{% endif %}{% endfor %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"  # noqa: E501 -- a template has no line breaks
SPECIAL = ("<|end|>", "<|im_start|>", "<|im_end|>", "<|start|>")
END, IM_START, IM_END, START = range(4)
QUESTION = types.Question(
  id="q7",
  question="What is 6 * 7?",
  answer="42",
  solution="6 * 7 = 42, so\n\\boxed{42}",
  meta={"target": 42},
)


def write(
  directory,
  *,
  template=None,
  eos="<|end|>",
  pad=None,
  generation=None,
  bos=False,
):
  """Writes a byte-level tokenizer; returns its directory."""
  directory.mkdir(exist_ok=True)
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
  backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(list(SPECIAL))
  if bos:  # a text is started and ended, as some tokenizers do
    backend.post_processor = processors.TemplateProcessing(
      single="<|start|> $A <|end|>",
      special_tokens=[("<|start|>", START), ("<|end|>", END)],
    )
  backend.save(str(directory / "tokenizer.json"))
  settings = {"eos_token": eos, "pad_token": pad, "chat_template": template}
  (directory / "tokenizer_config.json").write_text(
    json.dumps({k: v for k, v in settings.items() if v is not None})
  )
  if generation is not None:
    (directory / "generation_config.json").write_text(json.dumps(generation))
  return directory


def solution_tokens(loaded, question):
  """Returns the ids of a question's one demonstration, after its prompt."""
  (found,) = loaded.demonstrations(question)
  assert found.prompt.tolist() == loaded.prompt_tokens(question).tolist()
  assert found.token_weights is None
  return found.solution


def backend_ids(directory, text):
  backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
  return backend.encode(text, add_special_tokens=False).ids


def test_default_prompt_is_the_papers(tmp_path):
  loaded = tokenizer.from_source(write(tmp_path / "t", template=CHATML))
  assert loaded.decode(loaded.prompt_tokens(QUESTION)) == (
    "user\nWhat is 6 * 7?\nPlease reason step by step, and put your final "
    "answer within \\boxed{}.\nassistant\n"
  )


@pytest.mark.parametrize(
  ("template", "rendered"),
  [
    (
      CHATML,
      "<|im_start|>user\nWhat is 6 * 7?<|im_end|>\n<|im_start|>assistant\n"
      "6 * 7 = 42, so\n\\boxed{42}<|im_end|>",
    ),
    (
      THINKING,
      "<|im_start|>user\nWhat is 6 * 7?<|im_end|>\n<|im_start|>assistant\n"
      "<think>\n\n</think>\n\n6 * 7 = 42, so\n\\boxed{42}<|im_end|>",
    ),
    (
      NO_GENERATION_PROMPT,
      "user: What is 6 * 7?<|end|>assistant: 6 * 7 = 42, so\n\\boxed{42}"
      "<|end|>",
    ),
    (
      TRIMMED,
      "<|start|>[INST] What is 6 * 7? [/INST] 6 * 7 = 42, so\n\\boxed{42} "
      "<|end|>",
    ),
  ],
  ids=["chatml", "thinking", "no generation prompt", "trimmed"],
)
def test_prompt_and_solution_are_the_dialogue_up_to_its_eos(
  tmp_path, template, rendered
):
  directory = write(tmp_path / "t", template=template)
  loaded = tokenizer.from_source(directory, prompt="{question}")
  together = [
    *loaded.prompt_tokens(QUESTION),
    *solution_tokens(loaded, QUESTION),
  ]
  assert together == backend_ids(directory, rendered)


@settings(max_examples=50)
@given(text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_any_text_survives_in_a_solution(tmp_path_factory, text):
  directory = tmp_path_factory.mktemp("t")
  loaded = tokenizer.from_source(write(directory, template=CHATML))
  tokens = solution_tokens(loaded, QUESTION._replace(solution=text))
  assert tokens[-1] == IM_END
  assert loaded.decode(tokens) == text


def test_solution_ends_with_one_eos_and_nothing_after(tmp_path):
  loaded = tokenizer.from_source(write(tmp_path / "t", template=CHATML))
  tokens = solution_tokens(loaded, QUESTION)
  assert tokens.dtype == np.int32
  assert np.flatnonzero(np.isin(tokens, loaded.eos_ids)) == [len(tokens) - 1]


def test_a_template_that_rewrites_the_prompt_gets_the_bare_solution(tmp_path):
  template = "{{ messages | length }}{{ messages[-1].content }}<|end|>"
  directory = write(tmp_path / "t", template=template)
  loaded = tokenizer.from_source(directory)
  assert list(solution_tokens(loaded, QUESTION)) == backend_ids(
    directory, QUESTION.solution + "<|end|>"
  )


def test_eos_ids_are_those_of_generation_config_and_tokenizer(tmp_path):
  one = write(tmp_path / "1", generation={"eos_token_id": IM_END})
  assert tokenizer.from_source(one).eos_ids == (END, IM_END)
  two = write(tmp_path / "2", generation={"eos_token_id": [START, IM_END]})
  assert tokenizer.from_source(two).eos_ids == (END, IM_END, START)
  none = write(tmp_path / "3", generation={"temperature": 0.6})
  assert tokenizer.from_source(none).eos_ids == (END,)


def test_the_end_of_a_turn_is_an_eos_even_if_no_file_says_so(tmp_path):
  """Qwen2.5's base models: ChatML, while every file names <|endoftext|>."""
  directory = write(
    tmp_path / "t", template=CHATML, generation={"eos_token_id": END}
  )
  loaded = tokenizer.from_source(directory)
  assert loaded.eos_ids == (END, IM_END)
  assert loaded.end_id == IM_END


def test_pad_may_be_the_eos_and_changes_no_token(tmp_path):
  padded = tokenizer.from_source(
    write(tmp_path / "1", template=CHATML, pad="<|im_end|>", eos="<|im_end|>")
  )
  assert padded.pad_id == IM_END
  assert padded.eos_ids == (IM_END,)
  assert solution_tokens(padded, QUESTION)[-1] == IM_END
  unpadded = tokenizer.from_source(
    write(tmp_path / "2", template=CHATML, eos="<|im_end|>")
  )
  assert unpadded.pad_id == IM_END
  np.testing.assert_array_equal(
    padded.prompt_tokens(QUESTION), unpadded.prompt_tokens(QUESTION)
  )


def test_plain_prompt_is_text_and_newline_after_bos(tmp_path):
  directory = write(tmp_path / "t", bos=True)
  loaded = tokenizer.from_source(directory, prompt="{question}")
  assert list(loaded.prompt_tokens(QUESTION)) == [
    START,
    *backend_ids(directory, "What is 6 * 7?\n"),
  ]
  assert list(solution_tokens(loaded, QUESTION)) == [
    *backend_ids(directory, QUESTION.solution),
    END,
  ]


def test_chat_template_can_be_ignored_or_replaced(tmp_path):
  directory = write(tmp_path / "t", template=CHATML)
  plain = tokenizer.from_source(
    directory, prompt="{question}", use_chat_template=False
  )
  assert plain.decode(plain.prompt_tokens(QUESTION)) == "What is 6 * 7?\n"
  assert plain.end_id == END
  replaced = tokenizer.from_source(
    directory, prompt="{question}", chat_template=NO_GENERATION_PROMPT
  )
  assert list(replaced.prompt_tokens(QUESTION)) == backend_ids(
    directory, "user: What is 6 * 7?<|end|>"
  )


def test_system_prompt_starts_the_dialogue(tmp_path):
  directory = write(tmp_path / "t", template=CHATML)
  for use, expected in (
    (True, "system\nBe brief.\nuser\nWhat is 6 * 7?\nassistant\n"),
    (False, "Be brief.\nWhat is 6 * 7?\n"),
  ):
    loaded = tokenizer.from_source(
      directory,
      system_prompt="Be brief.",
      prompt="{question}",
      use_chat_template=use,
    )
    assert loaded.decode(loaded.prompt_tokens(QUESTION)) == expected


def test_prompt_can_use_meta_but_not_the_answer(tmp_path):
  directory = write(tmp_path / "t")
  loaded = tokenizer.from_source(directory, prompt="{question} Make {target}.")
  assert "Make 42." in loaded.decode(loaded.prompt_tokens(QUESTION))
  loaded = tokenizer.from_source(directory, prompt="{question} {answer}")
  with pytest.raises(errors.ConfigError, match="only fields of the question"):
    loaded.prompt_tokens(QUESTION)


def test_character_tokenizer_round_trips_its_alphabet(tmp_path):
  tokenizer_files.character_tokenizer(tmp_path / "t")
  loaded = tokenizer.from_source(tmp_path / "t", prompt="{question}")
  text = tokenizer_files.CHARACTERS + "  a\n\n#1"
  question = QUESTION._replace(question=text, solution=text)
  assert loaded.vocab_size <= 64
  assert len(loaded.prompt_tokens(question)) == len(text) + 1
  assert loaded.decode(loaded.prompt_tokens(question)) == text + "\n"
  assert loaded.decode(solution_tokens(loaded, question)) == text
  assert solution_tokens(loaded, question)[-1] == loaded.end_id == 1
  assert (loaded.eos_ids, loaded.pad_id) == ((1,), 0)


def test_character_tokenizer_refuses_what_it_does_not_know(tmp_path):
  tokenizer_files.character_tokenizer(tmp_path / "t")
  loaded = tokenizer.from_source(tmp_path / "t", prompt="{question}")
  with pytest.raises(errors.ConfigError, match="every character of 'A"):
    loaded.prompt_tokens(QUESTION._replace(question="A"))


def test_a_tokenizer_that_does_not_fit_the_embedding_is_refused(tmp_path):
  loaded = tokenizer.from_source(write(tmp_path / "t"))
  assert loaded.ids_without_token(260) == set()
  assert loaded.ids_without_token(263) == {260, 261, 262}
  with pytest.raises(errors.ConfigError, match=r"up to 259.*259$"):
    loaded.ids_without_token(259)


def test_tokenizer_json_wins_over_the_class_that_the_config_names(tmp_path):
  """SmolLM2's: its class would put GPT-2's cuts in place of single digits."""
  directory = write(tmp_path / "t")
  path = directory / "tokenizer.json"
  backend = tokenizers.Tokenizer.from_file(str(path))
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
  )
  two = {**backend.get_vocab(with_added_tokens=False), "ĠĠ": 300}
  backend.model = models.BPE(two, [("Ġ", "Ġ")])
  backend.save(str(path))
  (directory / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"})
  )
  loaded = tokenizer.from_source(directory, prompt="{question}")
  ids = solution_tokens(loaded, QUESTION._replace(solution="a  12"))
  assert list(ids) == backend_ids(directory, "a  12<|end|>")
  assert 300 in ids


def test_hub_id_is_fetched_without_the_weights(tmp_path, monkeypatch):
  directory = write(tmp_path / "t", template=CHATML)
  seen = {}

  def snapshot_download(repo_id, *, allow_patterns):
    seen.update(repo_id=repo_id, patterns=allow_patterns)
    return str(directory)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  loaded = tokenizer.from_source("someone/model")
  assert loaded.files == directory
  assert seen["repo_id"] == "someone/model"
  assert not [p for p in seen["patterns"] if "safetensors" in p]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"prompt": "{question"}, "must be a format string"),
    ({"prompt": "Answer!"}, "must have a field"),
    ({"chat_template": "{% if"}, "must render a dialogue"),
    ({"chat_template": "{{ nothing.at.all }}"}, "must render a dialogue"),
    ({"chat_template": "{{ messages[0].content }}"}, "leaves them out"),
    (
      {"chat_template": NO_SYSTEM + CHATML, "system_prompt": "Be brief."},
      "with a system prompt, got .*no system role",
    ),
  ],
)
def test_bad_settings_are_refused_in_one_sentence(tmp_path, arguments, message):
  directory = write(tmp_path / "t")
  with pytest.raises(errors.ConfigError, match=message) as error:
    tokenizer.from_source(directory, **arguments)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ({}, "must hold a readable tokenizer"),
    ({"tokenizer.json": "{"}, "must hold a readable tokenizer"),
    ({"generation_config.json": "["}, "must be a JSON object"),
    ({"generation_config.json": "[]"}, "must be a JSON object"),
    ({"generation_config.json": "[" * 10**5}, "must be a JSON object"),
    ({"tokenizer.json": "[" * 10**5}, "must hold a readable tokenizer"),
    ({"tokenizer_config.json": "[" * 10**5}, "must hold a readable tokenizer"),
    (
      {"generation_config.json": '{"eos_token_id": "</s>"}'},
      "must be an integer or a list of integers, got",
    ),
    ({"tokenizer_config.json": "{}"}, "must name what ends a text"),
  ],
)
def test_broken_files_are_refused_in_one_sentence(tmp_path, files, message):
  directory = write(tmp_path / "t")
  if not files:
    (directory / "tokenizer.json").unlink()
  for name, content in files.items():
    (directory / name).write_text(content)
  with pytest.raises(errors.ConfigError, match=message) as error:
    tokenizer.from_source(directory)
  assert "\n" not in str(error.value)


def test_a_missing_tokenizer_is_refused_in_one_sentence(tmp_path):
  (tmp_path / "file").touch()
  for source in (tmp_path / "absent", "someone/absent", tmp_path / "file"):
    with pytest.raises(
      errors.ConfigError, match="a directory or a hub id"
    ) as e:
      tokenizer.from_source(source)
    assert "\n" not in str(e.value)


def test_loading_needs_no_torch_and_says_nothing_about_it(tmp_path):
  directory = write(tmp_path / "t", template=CHATML)
  hide_torch = (
    "import importlib.util as u, sys; f = u.find_spec; "
    "u.find_spec = lambda n, *a: None if n == 'torch' else f(n, *a); "
    "sys.modules['torch'] = None; "
  )
  load = (
    "from bilevel_jax.data import tokenizer; "
    f"print(tokenizer.from_source({str(directory)!r}).eos_ids)"
  )
  done = subprocess.run(
    [sys.executable, "-c", hide_torch + load],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == f"({END}, {IM_END})\n"
  assert done.stderr == ""
