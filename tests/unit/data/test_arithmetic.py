from __future__ import annotations

import pytest

from distill.data.arithmetic import held_out_pairs, shuffled_pair
from distill.data.build import build
from distill.data.char_tokenizer import build_tokenizer
from distill.errors import UserError


def make(data, seed=0, max_positions=64, **keys):
    return build(data(**keys), build_tokenizer(), seed=seed, max_positions=max_positions)


@pytest.mark.parametrize("bound", [10, 100])
def test_the_shuffle_reaches_every_unordered_pair_once(bound):
    count = bound * (bound + 1) // 2
    pairs = [shuffled_pair(index, bound) for index in range(count)]
    assert set(pairs) == {(a, b) for b in range(bound) for a in range(b + 1)}
    assert pairs != sorted(pairs)


def test_the_split_is_disjoint_in_both_orders_and_complete(data):
    train, held_out = make(data, digits=2, eval_size=10_000)
    trained = {train.operands(index) for index in range(len(train))}
    tested = {held_out.operands(index) for index in range(len(held_out))}
    assert not trained & (tested | {(b, a) for a, b in tested})
    assert len(held_out) == held_out_pairs(100) == 505
    assert trained | tested | {(b, a) for a, b in tested} == {(a, b) for a in range(100) for b in range(100)}


def test_both_orders_are_held_out(data):
    held_out = make(data, digits=3)[1]
    ascending = sum(a < b for a, b in map(held_out.operands, range(len(held_out))))
    assert 90 < ascending < 166


def test_operands_are_spread_evenly(data):
    train = make(data, digits=3)[0]
    operands = [train.operands(index) for index in range(5000)]
    for side in (0, 1):
        tenths = [sum(pair[side] // 100 == tenth for pair in operands) for tenth in range(10)]
        assert all(400 < tenth < 600 for tenth in tenths)


def test_held_out_problems_do_not_depend_on_seed_or_eval_size(data):
    long = make(data, seed=1, eval_size=50)[1]
    short = make(data, seed=2, eval_size=20)[1]
    assert len(short) == 20
    assert list(short) == list(long)[:20]
    assert len(make(data, eval_size=50)[0]) == len(make(data, eval_size=20)[0])


def test_the_split_never_changes(data):
    # Models trained with an earlier version must not meet their training problems here.
    held_out = make(data, digits=3)[1]
    assert [held_out.operands(index) for index in range(4)] == [(125, 8), (970, 163), (840, 959), (711, 464)]


def test_few_problems_cap_eval_size(data):
    assert len(make(data, digits=1, eval_size=256)[1]) == 5


@pytest.mark.parametrize(("operator", "function"), [("+", int.__add__), ("-", int.__sub__), ("*", int.__mul__)])
def test_samples_hold_prompt_answer_and_end_token(data, operator, function):
    train, _ = make(data, operator=operator, digits=2)
    tokenizer = train.briefer.encoder.tokenizer
    for index in range(0, 2000, 97):
        sample = train[index]
        a, b = train.operands(index)
        assert sample.id == index
        assert tokenizer.decode(sample.prompt_ids) == f"{a}{operator}{b}="
        assert tokenizer.decode(sample.input_ids) == f"{a}{operator}{b}={function(a, b)}<eos>"
        targets = [id_ for id_, target in zip(sample.input_ids, sample.target_mask, strict=True) if target]
        assert targets == list(sample.input_ids[len(sample.prompt_ids) :])
        assert train.score(sample, tokenizer.decode(targets)) == 1.0


def test_large_problems_stay_lazy(data):
    train, held_out = make(data, digits=6)
    assert len(train) == 2**22
    assert train[len(train) - 1].answer >= 0
    assert len(held_out) == 256


@pytest.mark.parametrize("text", ["46", " 46\n", "046", "46 or 47", "It is 46.", "<unk>46"])
def test_the_first_number_is_right(data, text):
    train, _ = make(data)
    assert train.score(train.sample(0, 12, 34), text) == 1.0


@pytest.mark.parametrize("text", ["47", "4", "461", "-46", "47 46", "", "x", "9" * 5000])
def test_the_first_number_is_wrong(data, text):
    train, _ = make(data)
    assert train.score(train.sample(0, 12, 34), text) == 0.0


def test_negative_answers(data):
    train, _ = make(data, operator="-")
    sample = train.sample(0, 3, 10)
    assert (train.score(sample, "-7"), train.score(sample, "7")) == (1.0, 0.0)


def test_index_outside(data):
    train, held_out = make(data)
    for dataset in (train, held_out):
        with pytest.raises(IndexError, match="outside a dataset of"):
            dataset[len(dataset)]
        with pytest.raises(IndexError):
            dataset[-1]


def test_own_prompt(data):
    train, _ = make(data, prompt="{b:03d} + {a} = ?", digits=2)
    a, b = train.operands(5)
    assert train.briefer.encoder.tokenizer.decode(train[5].prompt_ids) == f"{b:03d} + {a} = ?"


@pytest.mark.parametrize(
    "prompt", ["{a}=", "{a}{b}{c}", "{a}{b", "{a}{b}{}", "{a.real}{b}", "{a[0]}{b}", "{a:zz}{b}", "{a}{b}{operator:d}"]
)
def test_refuses_a_prompt_without_operands(data, prompt):
    with pytest.raises(UserError, match=r"^`data\.prompt` must be a template with \{a\}, \{b\}"):
        make(data, prompt=prompt)


def test_refuses_a_prompt_the_tokenizer_does_not_know(data):
    with pytest.raises(UserError, match="characters that the tokenizer knows"):
        make(data, prompt="What is {a}{operator}{b}?")


def test_refuses_a_context_too_short_for_the_longest_prompt(data):
    with pytest.raises(UserError, match="fewer than 8 tokens") as error:
        make(data, max_positions=8)
    assert "'999+999='" in str(error.value)
    assert "a prompt of 8 tokens" in str(error.value)
    make(data, max_positions=9)


def test_as_a_conversation(data, byte_tokenizer):
    tokenizer = byte_tokenizer("chatml")
    train, _ = build(data(chat_template=True, system_prompt="Add."), tokenizer, seed=0, max_positions=None)
    sample = train.sample(0, 12, 34)
    prompt = "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n12+34=<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(sample.prompt_ids) == prompt
    assert tokenizer.decode(sample.input_ids) == prompt + "46<|im_end|>"


def test_describes_itself(data):
    train, held_out = make(data, digits=2)
    assert train.describe()["rows"] == 9090
    assert train.describe()["split"] != held_out.describe()["split"]
    assert train.has_verifier
    assert train.name == "arithmetic"
