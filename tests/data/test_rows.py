"""Rows of every form, what they are read as, and what is refused."""

import csv
import gzip
import json

import pytest

from bilevel_jax import config, errors, types
from bilevel_jax.data import columns, corpora, rows

USER = {"role": "user", "content": "17+25?"}
SAID = {"role": "assistant", "content": "17+25=42"}
PAIR = (USER, SAID)


def _read(row, fields=None):
  return rows.question(columns.Row("row", row), fields or {})


def _asked(question):
  """The turns of a prompt and those that follow it, without weights."""
  turns = [
    {k: v for k, v in turn.items() if k != "weight"}
    for turn in question.dialogue.turns
  ]
  return turns[: question.dialogue.asked], turns[question.dialogue.asked :]


@pytest.mark.parametrize(
  "row",
  [
    {"prompt": [USER], "completion": [SAID]},
    {"messages": list(PAIR)},
    {"messages": [USER], "solution": "17+25=42"},
    {
      "conversations": [
        {"from": "human", "value": "17+25?"},
        {"from": "gpt", "value": "17+25=42"},
      ]
    },
    {"instruction": "17+25?", "input": "", "output": "17+25=42"},
    {"prompt": [USER], "chosen": [SAID], "rejected": [USER]},
    {"chosen": [USER, SAID], "rejected": [USER, {**SAID, "content": "43"}]},
    {"prompt": [USER], "solution": "17+25=42"},
    {"prompt": "17+25?", "prompt_id": "x", "messages": list(PAIR)},
  ],
  ids=lambda row: "+".join(row),
)
def test_every_form_says_the_same(row):
  question = _read({**row, "answer": 42, "level": 3})
  assert question[1:4] == ("17+25?", "42", "17+25=42")
  assert _asked(question) == ([USER], [SAID])
  assert question.meta["level"] == 3
  assert not {"answer", "messages", "completion", "solution"} & set(
    question.meta
  )


def test_verls_rows():
  row = {
    "data_source": "openai/gsm8k",
    "prompt": [USER],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "42"},
    "extra_info": {"split": "train", "index": 0},
  }
  question = _read(row)
  assert question[1:4] == ("17+25?", "42", None)
  assert _asked(question) == ([USER], [])
  assert question.meta == {k: v for k, v in row.items() if k != "prompt"}
  mapped = _read(row, {"answer": "extra_info.split", "id": "extra_info.index"})
  assert (mapped.answer, mapped.id) == ("train", "0")
  assert _read(
    {**row, "reward_model": {"ground_truth": {"a": [1]}}}
  ).answer == ('{"a": [1]}')


def test_a_text_is_continued_as_it_stands():
  question = _read({"prompt": "17+25=", "completion": "42", "answer": "42"})
  assert question[1:4] == ("17+25=", "42", "42")
  assert question.dialogue == types.Dialogue()
  assert _read({"prompt": "a"}, {"question": "prompt"}).dialogue is None


def test_what_stands_beside_a_row_is_read():
  row = {
    "messages": [USER, {**SAID, "weight": 0}, USER, SAID],
    "system": "Be brief.",
    "tools": json.dumps([{"type": "function"}]),
    "chat_template_kwargs": {"enable_thinking": False},
    "weight": 0.5,
  }
  question = _read(row)
  assert question.weight == 0.5
  assert question.dialogue.turns[0] == {
    "role": "system",
    "content": "Be brief.",
  }
  assert question.dialogue.tools == ({"type": "function"},)
  assert question.dialogue.variables == {"enable_thinking": False}
  assert [t.get("weight") for t in question.dialogue.turns] == [
    None, None, 0.0, None, None,
  ]  # fmt: skip
  assert question.dialogue.asked == 4
  assert question.meta == {}


def test_alpacas_history_precedes_what_is_asked():
  row = {
    "instruction": "And", "input": "1+1?", "output": "2",
    "history": [["17+25?", "17+25=42"]], "system": "Add.",
  }  # fmt: skip
  before, after = _asked(_read(row))
  system = {"role": "system", "content": "Add."}
  assert before == [system, *PAIR, {"role": "user", "content": "And\n1+1?"}]
  assert after == [{"role": "assistant", "content": "2"}]


def test_gsm8ks_answer_and_the_last_box_of_a_solution():
  assert _read({"question": "q", "answer": "1+1=2\n#### 2"})[2:4] == (
    "2", "1+1=2\n#### 2",
  )  # fmt: skip
  assert _read({"problem": "q", "solution": r"so \boxed{2}"})[1:4] == (
    "q", r"so \boxed{2}", r"so \boxed{2}",
  )  # fmt: skip


@pytest.mark.parametrize(
  ("row", "sentence"),
  [
    (
      {"question": "q", "messages": [USER]},
      "row can be read as question (column question) or as messages (column "
      "messages): say which one is meant by `fields`, such as "
      "fields.question=question",
    ),
    (
      {"prompt": "q", "completion": "c", "solution": "s"},
      "row has two demonstrations, in the columns completion and solution: say "
      "which one is meant by `fields`, such as fields.answer=solution where it "
      "is only the answer",
    ),
    (
      {"messages": [USER, SAID], "solution": "s"},
      "row has two demonstrations, the last of messages and the column "
      "solution: say which one is meant by `fields`, such as "
      "fields.answer=solution where it is only the answer",
    ),
    (
      {"messages": [{"role": "system", "content": "x"}, USER], "system": "y"},
      "row has two system messages, of the column system and of the dialogue",
    ),
    (
      {"messages": []},
      "row: field 'messages' must be a list of messages, got a list",
    ),
    (
      {"messages": [SAID]},
      "row must ask something: no message of a user precedes the last answer",
    ),
    (
      {"messages": [{"role": "robot", "content": "x"}]},
      "row: messages[0] must have a role of system, developer, user, "
      "assistant, tool, got 'robot'",
    ),
    (
      {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
      "row: messages[0] must have parts of text alone, got image",
    ),
    (
      {"messages": ["hi"]},
      "row: messages[0] must be a message, an object with role and content, "
      "got a string",
    ),
    (
      {"messages": [USER, {**SAID, "weight": -1}]},
      "row: messages[1].weight must be a number of at least 0, got -1",
    ),
    (
      {"question": "q", "weight": "heavy"},
      "row: field 'weight' must be a number of at least 0, got 'heavy'",
    ),
    (
      {"prompt": [USER], "tools": {"a": 1}},
      "row: field 'tools' must be a list of JSON schemas, got an object",
    ),
    (
      {"instruction": "q", "history": [["a"]]},
      "row: field 'history' must be a list of pairs of texts, got a list",
    ),
    (
      {"prompt": [USER], "chat_template_kwargs": {"chat_template": "x"}},
      "row: field 'chat_template_kwargs' must not have chat_template",
    ),
    (
      {"text": "t"},
      "row lacks the field 'question', it has text (`fields` maps our names to "
      "theirs)",
    ),
  ],
  ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_in_a_sentence(row, sentence):
  with pytest.raises(errors.ConfigError) as error:
    _read(row)
  assert str(error.value) == sentence


def _file(path, content):
  path.write_text("\n".join(map(json.dumps, content)))
  return config.Source(path=str(path))


def test_trls_solution_that_is_only_the_answer(tmp_path):
  bare = [{"prompt": [USER], "solution": f"${n}$"} for n in (1, 2)]
  whole = {"prompt": [USER], "solution": "17 and 25 are 42 when they are added"}
  with pytest.raises(errors.ConfigError, match=r"bare answer, such as '\$1\$'"):
    corpora.load(_file(tmp_path / "a.jsonl", bare))
  for changes in (
    {"fields": {"answer": "solution"}},
    {"fields": {"solution": "solution"}},
  ):
    source = config.Source(path=str(tmp_path / "a.jsonl"), **changes)
    assert len(corpora.load(source)) == 2
  mixed = corpora.load(_file(tmp_path / "b.jsonl", [*bare, whole]))
  assert rows.bare_solutions(mixed) == (2, 3)
  answered = [{**row, "answer": "1"} for row in bare]
  found = corpora.load(_file(tmp_path / "c.jsonl", answered))
  assert rows.bare_solutions(found) == (1, 2)


CONTENT = [{"question": f"{n}+1?", "answer": str(n + 1)} for n in range(3)]


@pytest.mark.parametrize(
  "kind", ["json", "object", "csv", "tsv", "csv.gz", "parquet", "lines"]
)
def test_files_are_told_by_their_content(tmp_path, kind):
  path = tmp_path / {"object": "a.json", "lines": "b.json"}.get(
    kind, f"a.{kind}"
  )
  if kind == "json":
    path.write_text(json.dumps(CONTENT, indent=2))
  elif kind == "object":
    path.write_text(json.dumps({"version": 1, "data": CONTENT}))
  elif kind == "lines":
    path.write_text("\n".join(map(json.dumps, CONTENT)))
  elif kind == "parquet":
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(CONTENT), path)
  else:
    opener = gzip.open if kind.endswith("gz") else open
    with opener(path, "wt", newline="") as file:
      writer = csv.DictWriter(
        file, ["question", "answer"], delimiter="\t" if kind == "tsv" else ","
      )
      writer.writeheader()
      writer.writerows(CONTENT)
  found = corpora.load(config.Source(path=str(path)))
  assert [(q.question, q.answer) for q in found] == [
    (row["question"], row["answer"]) for row in CONTENT
  ]


@pytest.mark.parametrize(
  ("name", "content", "sentence"),
  [
    ("a.csv", "question,answer\n1,2,3\n", "line 2 must have 2 fields, as"),
    ("a.csv", 'question,answer\n"1,2\n', "line 1 is not CSV: unexpected end"),
    ("a.json", "[1]", "row 1 must be a JSON object, got a int"),
    ("a.json", "[", "is not JSON: "),
    ("a.json", '"x"', "must be a list of objects, got a string"),
    ("a.parquet", "PAR1 and no more", "cannot be read: "),
  ],
)  # fmt: skip
def test_broken_files_are_refused(tmp_path, name, content, sentence):
  path = tmp_path / name
  path.write_text(content)
  with pytest.raises(errors.ConfigError, match=sentence) as error:
    corpora.load(config.Source(path=str(path)))
  assert "\n" not in str(error.value)


def test_several_sources_with_shares(tmp_path):
  for name, count in (("a", 4), ("b", 1)):
    _file(
      tmp_path / f"{name}.jsonl",
      [{"question": f"{name}{n}", "answer": "1"} for n in range(count)],
    )
  a, b = (str(tmp_path / f"{name}.jsonl") for name in "ab")
  load = lambda *sources, **more: corpora.load_parts(
    config.Source(sources=sources, **more)
  )
  parts = load(f"{a}=2", f"{b}=2", "arithmetic=4", count=1)
  assert [(len(p.questions), p.share) for p in parts] == [
    (1, 2),
    (1, 2),
    (1, 4),
  ]
  assert [len(p.questions) for p in load(a, b)] == [5]
  for broken in ((f"{a}=2", b), (f"{a}=0",), (f"{a}=x",), ("=1",)):
    with pytest.raises(errors.ConfigError, match="must be SOURCE=SHARE"):
      load(*broken)
  with pytest.raises(errors.ConfigError, match="ids must differ"):
    load(a, f"{tmp_path}/./a.jsonl")
