from __future__ import annotations

import random
import sys

import numpy as np
import pytest

from distill.data.build import build
from distill.errors import UserError

pytest.importorskip("reasoning_gym")


@pytest.fixture
def load(data, byte_tokenizer):
    def run(task, seed=0, size=50, eval_size=20, **keys):
        config = data(source="reasoning_gym", task=task, size=size, eval_size=eval_size, **keys)
        return build(config, byte_tokenizer("chatml"), seed=seed, max_positions=None)

    return run


def questions(dataset):
    return [sample.answer["question"] for sample in dataset]


def test_samples_hold_question_and_answer(load, byte_tokenizer):
    train, held_out = load("chain_sum")
    assert (len(train), len(held_out)) == (50, 20)
    sample = train[3]
    assert sample.id == 3
    text = byte_tokenizer().decode(sample.input_ids)
    assert text == f"{sample.answer['question']}\n{sample.answer['answer']}<|im_end|>"


def test_the_users_turn_is_the_question(load, byte_tokenizer):
    train, _ = load("chain_sum", chat_template=True)
    text = byte_tokenizer().decode(train[0].prompt_ids)
    assert f"<|im_start|>user\n{train[0].answer['question']}<|im_end|>" in text


@pytest.mark.parametrize("task", ["chain_sum", "coin_flip", "list_functions", "tower_of_hanoi"])
def test_the_sides_share_no_question(load, task):
    # coin_flip and tower_of_hanoi repeat themselves within a few dozen questions.
    train, held_out = load(task)
    assert not set(questions(train)) & set(questions(held_out))


def test_only_training_depends_on_the_seed(load):
    first, second = load("chain_sum", seed=1), load("chain_sum", seed=2)
    assert questions(first[1]) == questions(second[1])
    assert not set(questions(first[0])) & set(questions(second[0]))
    assert questions(first[0]) == questions(load("chain_sum", seed=1)[0])


def test_samples_do_not_depend_on_the_order_of_access(load):
    forwards = list(load("list_functions")[0])
    train = load("list_functions")[0]
    assert [train[i] for i in reversed(range(50))][::-1] == forwards


@pytest.mark.parametrize("task", ["list_functions", "pool_matrix"])
def test_global_random_state_is_left_alone(load, task):
    train = load(task)[0]
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    first = train[10]
    assert (random.random(), np.random.random()) == expected
    assert train[10] == first


def test_score_takes_the_answer_plain_or_tagged(load):
    _, held_out = load("chain_sum")
    sample = held_out[0]
    answer = sample.answer["answer"]
    for said in (
        answer,
        f" {answer}\n",
        f"So:\n<answer> {answer} </answer>",
        f"<answer>0.5</answer><answer>{answer}</answer>",
    ):
        assert held_out.score(sample, said) == 1.0
    for said in ("", "no", f"{answer}5", f"<answer>{answer}5</answer>", f"the result is {answer}"):
        assert held_out.score(sample, said) == 0.0


def test_a_verifier_that_raises_means_wrong(load):
    _, held_out = load("prime_factorization")
    sample = held_out[0]
    with pytest.raises(ValueError, match="invalid literal"):
        held_out._generator(0).score_answer("foo", sample.answer)
    assert held_out.score(sample, "foo") == 0.0
    assert held_out.score(sample, sample.answer["answer"]) == 1.0


def test_options_reach_the_task(load):
    train, _ = load("chain_sum", options={"min_terms": 6, "max_terms": 6})
    assert all(sum(map(question.count, "+-")) >= 5 for question in questions(train))
    assert train.describe()["options"] == {"min_terms": 6, "max_terms": 6}


def test_a_task_without_reference_answers_is_prompts_only(load):
    train, _ = load("graph_color", size=5, eval_size=2)
    assert not train[0].has_completion


def test_refuses_an_unknown_task_with_close_matches(load):
    with pytest.raises(
        UserError, match=r"^`data\.task` must be one of .* such as .*chain_sum.* but is 'chain_sums'\.$"
    ):
        load("chain_sums")


@pytest.mark.parametrize("options", [{"min_term": 2}, {"seed": 3}, {"size": 3}])
def test_refuses_an_unknown_option(load, options):
    with pytest.raises(UserError, match=r"^`data\.options` must be one of .*min_terms"):
        load("chain_sum", options=options)


def test_refuses_an_impossible_option(load):
    with pytest.raises(UserError, match=r"^`data\.options` must be options that 'chain_sum' accepts"):
        load("chain_sum", options={"min_terms": 9, "max_terms": 2})


def test_refuses_a_task_with_too_few_questions(load, monkeypatch):
    import reasoning_gym

    only = [{"question": "always this", "answer": "1"}] * 50
    monkeypatch.setattr(reasoning_gym, "create_dataset", lambda *_, **__: only)
    with pytest.raises(UserError, match="more different questions"):
        load("chain_sum")


def test_refuses_tasks_that_change_with_the_hash_seed(load, monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(UserError, match="PYTHONHASHSEED=0"):
        load("ransom_note")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(load("ransom_note")[0]) == 50


def test_says_how_to_install_the_package(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(UserError, match=r"pip install 'distill\[reasoning\]'"):
        load("chain_sum")


def test_refuses_a_question_that_does_not_fit(load):
    with pytest.raises(UserError, match=r"chain_sum, entry 0: a prompt of \d+ tokens"):
        load("chain_sum", max_length=20)


def test_index_outside(load):
    train, _ = load("chain_sum")
    with pytest.raises(IndexError):
        train[50]
