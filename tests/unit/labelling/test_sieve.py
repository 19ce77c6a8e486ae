"""Of rows that say the same the first is kept, and parts count as far as they are there without a gap."""

import json
from pathlib import Path
from typing import Any

import pytest

from distill import parts
from distill.data import build
from distill.labelling.records import answered, asked, key
from distill.labelling.sieve import Join, Sieve, known_prompts
from tests.unit.data.conftest import build_byte_tokenizer


def record(prompt: str, completion: str = "", dropped: str | None = None) -> dict[str, Any]:
    row = {"prompt": prompt, "completion": completion}
    return {"dropped": dropped, "tokens": 2, "exact": False, "verified": True, "row": row}


def test_the_first_of_equal_rows_is_kept() -> None:
    sieve = Sieve()
    rows = [("a", "b"), (" A ", "\uff42"), ("a", "c"), ("ab", ""), ("b", "a")]
    assert [sieve.take(record(*row)) for row in rows] == [True, False, True, True, True]
    assert (sieve.kept, sieve.drawn, sieve.dropped) == (4, 5, {"duplicate": 1})


def test_new_prompts_are_new_whatever_their_answers() -> None:
    sieve = Sieve(known={key(record("old")["row"], whole=False): "training"}, wanted=2)
    assert [sieve.take(record(*row)) for row in [("a", "b"), ("a", "c"), ("Old", "d")]] == [True, False, False]
    assert sieve.dropped == {"duplicate": 1, "training": 1}
    assert not sieve.take(record("x", dropped="wrong"))
    assert sieve.take(record("x"))
    assert sieve.full
    assert sieve.counts == {"tokens_sampled": 10, "verified": 2, "exact": 0}


def test_conversations_are_compared_without_their_system_turns() -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    other = {"messages": [{"role": "system", "content": "s"}, *row["messages"]]}
    assert key(row, whole=True) == key(other, whole=True)
    assert key(row, whole=True) == key(answered(asked(row), "a"), whole=True)
    assert key(row, whole=True) != key(answered(asked(row), "b"), whole=True)
    assert key(row, whole=False) == key(asked(row), whole=False) == key(answered(asked(row), "b"), whole=False)
    assert asked(row) == asked(asked(row)), "a conversation that ends with a question is left as it is"


def test_a_gap_waits(tmp_path: Path) -> None:
    parts.begin(tmp_path, {}, {})
    join = Join(tmp_path, 3, Sieve(wanted=3))
    write = {n: [json.dumps(record(f"{n} {i}")) for i in range(2)] for n in range(3)}
    parts.write(parts.path(tmp_path, 1), write[1])
    assert not join.enough()
    assert join.sieve.drawn == 0
    parts.write(parts.path(tmp_path, 0), write[0])
    assert join.enough(), "three rows of the first two parts"
    assert join.sieve.drawn == 3, "what comes after the last row that is wanted does not count"


@pytest.mark.parametrize("chat", [False, True])
def test_held_out_sums_are_known_in_both_orders(chat: bool, data) -> None:
    tokenizer = build_byte_tokenizer("chatml")
    config = data(digits=1, eval_size=5, limit=10, chat_template=chat)
    train, held_out = build(config, tokenizer, seed=0, max_positions=None)
    known = known_prompts(train, held_out)
    assert [known[key(train.row(index), whole=False)] for index in range(10)] == ["training"] * 10
    for index in range(5):
        a, b = held_out.operands(index)
        for prompt in (f"{a}+{b}=", f"{b}+{a}="):
            assert known[key({"prompt": prompt}, whole=False)] == "held_out"
