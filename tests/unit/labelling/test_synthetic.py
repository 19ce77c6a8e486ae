"""How examples are written down and found again, and which ones are shown."""

import pytest

from distill.config.schema_label import Label
from distill.errors import UserError
from distill.labelling.synthetic import Form, choose, pair

DEFAULT = Form.of(Label().example)
SHORT = Form("", " ", " ")


@pytest.mark.parametrize("prompt", ["Why?", "Two\nlines:\n", "  indented", "Prompt: of a kind"])
@pytest.mark.parametrize("completion", ["Because.", "One.\n\nTwo.", "  code"])
@pytest.mark.parametrize("stopped", [True, False])
def test_what_is_written_is_found(prompt: str, completion: str, stopped: bool) -> None:
    text = DEFAULT.write(prompt, completion)
    assert DEFAULT.find(text + DEFAULT.write("Next", "one"), stopped) == (prompt, completion)
    assert DEFAULT.find(text, stopped=True) == (prompt, completion)


@pytest.mark.parametrize(
    ("form", "text", "stopped", "found"),
    [
        (DEFAULT, "Sure!\n\nPrompt:What?\nResponse:\nThis.", True, ("What?", "This.")),
        (DEFAULT, "Prompt: What?\nResponse: This is cut", False, None),
        (DEFAULT, "Prompt: What?\nResponse: This.\n\nPrompt: cut", False, ("What?", "This.")),
        (DEFAULT, "Prompt: What? This.", True, None),
        (DEFAULT, "", True, None),
        (SHORT, "1+2= 3 4+4= 8", True, ("1+2=", "3")),
        (SHORT, "1+2= 3", True, ("1+2=", "3")),
        (SHORT, "1+2= 3", False, None),
        (Form("Q.*", "|", "#"), "Q.*a|b#Q.*", False, ("a", "b")),
    ],
)
def test_what_a_teacher_makes_of_it(form: Form, text: str, stopped: bool, found: tuple[str, str] | None) -> None:
    assert form.find(text, stopped) == found


def test_every_draw_shows_examples_of_its_own() -> None:
    shown = [choose(0, draw, 3, 20) for draw in range(200)]
    assert all(len(set(chosen)) == 3 and set(chosen) <= set(range(20)) for chosen in shown)
    assert len({tuple(chosen) for chosen in shown}) > 190
    assert [choose(0, draw, 3, 20) for draw in range(200)] == shown
    assert choose(1, 0, 3, 20) != shown[0]
    assert sorted(choose(0, 0, 5, 5)) == list(range(5))


def test_a_conversation_of_several_turns_is_no_example() -> None:
    user, assistant = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    assert pair({"messages": [{"role": "system", "content": "s"}, user, assistant]}) == ("q", "a")
    with pytest.raises(UserError, match=r"`label.prompts` must be 'given' for conversations of several turns"):
        pair({"messages": [user, assistant, user, assistant]})
