from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.data import text
from distill.data.build import build
from distill.errors import UserError


@pytest.fixture
def load(tmp_path, data, byte_tokenizer):
    """Writes rows as JSON lines and builds the datasets."""

    def run(rows, tokenizer=None, max_positions=200, **keys):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = data(source="text", path=str(path), **keys)
        return build(config, tokenizer or byte_tokenizer("chatml"), seed=0, max_positions=max_positions)

    return run


def pairs(count):
    return [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(count)]


def chats(count):
    turns = ("hi", "user"), ("yo", "assistant")
    return [{"messages": [{"role": role, "content": f"{text} {i}"} for text, role in turns]} for i in range(count)]


def test_prompts_and_completions(load, byte_tokenizer):
    train, held_out = load(pairs(20))
    tokenizer = byte_tokenizer()
    assert [tokenizer.decode(sample.input_ids) for sample in train] == [
        f"question {i}answer {i}<|im_end|>" for i in range(18)
    ]
    assert [tokenizer.decode(sample.prompt_ids) for sample in held_out] == ["question 18", "question 19"]
    assert [sample.id for sample in train] == list(range(18))


def test_conversations(load, byte_tokenizer):
    train, _ = load(chats(3))
    sample = train[1]
    targets = [id_ for id_, target in zip(sample.input_ids, sample.target_mask, strict=True) if target]
    assert byte_tokenizer().decode(targets) == "yo 1<|im_end|>"


@pytest.mark.parametrize(("rows", "eval_size", "expected"), [(2, 256, 1), (19, 256, 1), (100, 256, 10), (100, 4, 4)])
def test_the_last_rows_are_held_out_and_it_says_so(load, rows, eval_size, expected):
    train, held_out = load(pairs(rows), eval_size=eval_size)
    assert (len(train), len(held_out)) == (rows - expected, expected)
    assert held_out.describe()["split"] == f"the last {expected} of {rows} rows, held out"
    assert held_out.describe()["rows"] == expected


def test_eval_path(load, tmp_path):
    other = tmp_path / "other.parquet"
    pq.write_table(pa.Table.from_pylist(pairs(6)[3:]), other)
    train, held_out = load(pairs(1), eval_path=str(other), eval_size=2)
    assert (len(train), len(held_out)) == (1, 2)
    assert held_out.describe() == {
        "source": "text", "path": str(other), "rows": 2, "split": "the first 2 of 3 rows"
    }  # fmt: skip


def test_parquet_fills_missing_keys_with_null(tmp_path, data, byte_tokenizer):
    rows = [
        {"prompt": "a", "messages": None},
        {"messages": [{"role": "user", "content": "b"}]},
        {"messages": [{"role": "user", "content": "c", "name": "x"}, {"role": "assistant", "content": "d"}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    tokenizer = byte_tokenizer("chatml")
    config = data(source="text", path=str(tmp_path / "a.parquet"), eval_path=str(tmp_path / "a.parquet"))
    train, _ = build(config, tokenizer, seed=0, max_positions=None)
    assert [sample.has_completion for sample in train] == [False, False, True]
    assert tokenizer.decode(train[0].prompt_ids) == "a"


def test_prompts_without_completions(load):
    train, _ = load([{"prompt": "hi"}, {"prompt": "yo", "completion": None}])
    assert not train[0].has_completion
    assert train[0].prompt_ids


def test_score_needs_an_answer(load):
    train, held_out = load([{"prompt": "2+2?", "answer": " Vier  Stück"}, {"prompt": "3+4?", "answer": 7}])
    assert train.has_verifier
    for said in ("vier stück", " VIER\nSTÜCK ", "vier stu\u0308ck"):
        assert train.score(train[0], said) == 1.0
    for said in ("vier", "vier stück!", "", "es sind vier stück"):
        assert train.score(train[0], said) == 0.0
    assert (held_out.score(held_out[0], "7"), held_out.score(held_out[0], "8")) == (1.0, 0.0)


def test_no_verifier_unless_every_row_has_an_answer(load):
    train, held_out = load([{"prompt": "a", "answer": "b"}, {"prompt": "c"}])
    assert not train.has_verifier
    assert held_out.score(held_out[0], "") == 0.0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "hi"}, "a row of text"),
        ({}, "a row of nothing"),
        ({"prompt": None}, "a row of prompt"),
        ({"prompt": 3}, "`prompt` of type int"),
        ({"prompt": ["hi"]}, "`prompt` of type list"),
        ({"prompt": "hi", "completion": {}}, "`completion` of type dict"),
        ({"prompt": "hi", "answer": ["a"]}, "`answer` of type list"),
        ({"prompt": "half \ud83d"}, "`prompt` with half a surrogate pair"),
        ({"prompt": ""}, "a prompt of 0 tokens"),
        ({"messages": []}, "`messages` of another form"),
        ({"messages": "hi"}, "`messages` of another form"),
        ({"messages": ["hi"]}, "`messages` of another form"),
        ({"messages": [{"content": "hi"}]}, "`role` of type NoneType"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "`content` of type list"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "the assistant speaks first"),
    ],
)
def test_names_the_line_of_a_bad_row(load, row, said):
    with pytest.raises(UserError, match=said) as error:
        load([*pairs(3), row, *pairs(3)])
    assert str(error.value).startswith("`data.path` must be ")
    assert "rows.jsonl, line 4: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("checked_at_start", [1000, 0])
def test_names_the_row_whose_prompt_is_too_long(load, monkeypatch, checked_at_start):
    monkeypatch.setattr(text, "TOKENISED_AT_START", checked_at_start)
    rows = [*pairs(3), {"prompt": "x" * 400, "completion": "y"}, *pairs(3)]
    with pytest.raises(UserError, match=r"line 4: a prompt of 400 tokens") as error:
        load(rows, max_positions=300)
    assert "fewer than 300 tokens" in str(error.value)
    with pytest.raises(UserError, match="fewer than 350 tokens"):
        load(rows, max_positions=1000, max_length=350)
    assert len(load(rows, max_positions=401)[0]) == 6


@pytest.mark.parametrize("checked_at_start", [1000, 0])
def test_rows_that_do_not_fit_are_left_out_where_that_is_asked_for(load, monkeypatch, caplog, checked_at_start):
    monkeypatch.setattr(text, "TOKENISED_AT_START", checked_at_start)
    rows = [*pairs(3), {"prompt": "x" * 400, "completion": "y"}, *pairs(8)[3:]]
    train, held_out = load(rows, max_positions=300, too_long="drop")
    assert [*train, *held_out] == [*load(pairs(8), max_positions=300)[0], *held_out]
    assert train.fingerprint() == load(pairs(8), max_positions=300)[0].fingerprint()
    assert train.describe()["split"] == "the first 7 of 8 rows"
    assert "1 of 9 rows are left out, whose prompts do not fit" in caplog.text
    with pytest.raises(UserError, match=r"or data\.too_long=drop, which leaves it out"):
        load(rows, max_positions=300)
    with pytest.raises(UserError, match=r"at least one prompt that fits"):
        load([rows[3]] * 2, max_positions=300, too_long="drop")
    assert "line 7" in str(text.Origin("data.path", train.rows.place(5)).error("", ""))


def test_tulu_3_is_read_as_it_is(data, byte_tokenizer, tmp_path):
    """Parquet files of a folder, with the columns `id`, `messages` and `source` of allenai/tulu-3-sft-mixture."""
    kinds = pa.schema([
        ("id", pa.string()),
        ("messages", pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))),
        ("source", pa.string()),
    ])  # fmt: skip
    for shard in range(2):
        rows = []
        for number in range(3):
            said = [("system", "be brief"), ("user", f"q{shard}{number}"), ("assistant", f"a{shard}{number}")]
            said += [("user", "x" * (400 if number == 1 else 4)), ("assistant", "bye")]
            turns = [{"content": content, "role": role} for role, content in said]
            rows.append({"id": f"{shard}-{number}", "messages": turns, "source": "ai2-adapt-dev/personahub"})
        pq.write_table(pa.Table.from_pylist(rows, kinds), tmp_path / f"train-{shard:05d}-of-00002.parquet")
    config = data(source="text", path=str(tmp_path), too_long="drop")
    train, held_out = build(config, byte_tokenizer("chatml"), seed=0, max_positions=300)
    assert (len(train), len(held_out)) == (3, 1)
    learned = [id_ for id_, target in zip(train[1].input_ids, train[1].target_mask, strict=True) if target]
    assert byte_tokenizer().decode(learned) == "a02<|im_end|>bye<|im_end|>"


def test_long_rows_beyond_the_first_are_found_at_start(load, monkeypatch):
    monkeypatch.setattr(text, "TOKENISED_AT_START", 1)
    rows = chats(4)
    rows[2]["messages"][0]["content"] = "x" * 1000
    with pytest.raises(UserError, match=r"line 3: a prompt of 10.. tokens"):
        load(rows, max_positions=1000)


def test_refuses_a_single_row_without_eval_path(load):
    with pytest.raises(UserError, match="at least two rows"):
        load(pairs(1))


def test_refuses_conversations_without_a_template(load, byte_tokenizer):
    with pytest.raises(UserError, match=r"without a chat template, but is .*line 1: a conversation"):
        load(chats(3), tokenizer=byte_tokenizer())
    with pytest.raises(UserError, match=r"`data\.chat_template` must be false"):
        load(pairs(3), tokenizer=byte_tokenizer(), chat_template=True)


def test_chat_template_wraps_plain_rows(load, byte_tokenizer):
    train, _ = load(pairs(2), chat_template=True, system_prompt="S")
    assert byte_tokenizer().decode(train[0].input_ids) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nquestion 0<|im_end|>\n"
        "<|im_start|>assistant\nanswer 0<|im_end|>"
    )


def test_messages_win_over_prompt(load, byte_tokenizer):
    train, _ = load([row | {"prompt": "ignored"} for row in chats(2)])
    assert "ignored" not in byte_tokenizer().decode(train[0].input_ids)


def test_index_outside(load):
    train, held_out = load(pairs(20))
    for dataset in (train, held_out):
        with pytest.raises(IndexError):
            dataset[len(dataset)]
        with pytest.raises(IndexError):
            dataset[-1]
