"""Integer arithmetic: unlimited verifiable problems without a file. The embedded default.

The operands are all ordered pairs of numbers of up to ``digits`` digits. A fixed shuffle of the *unordered* pairs
sets aside a tenth of them, so no held-out problem is trained on in either order, whatever the run's seed.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from distill.data.base import check_index, digest
from distill.data.briefing import Briefer
from distill.data.encode import Origin
from distill.errors import UserError
from distill.types import Sample

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
HELD_OUT_SHARE = 10
"""One in this many unordered pairs is never trained on."""
TRAIN_LIMIT = 2**22
"""Longest training set, for the sake of its permutation; reached from 4 digits on."""
ROUNDS = 4
MASK = 2**64 - 1


@dataclass(frozen=True)
class Arithmetic:
    """One side of the split. Samples are computed from their index; nothing is stored.

    The training side lists each pair in both orders (equal operands therefore twice), the held-out side in one.
    """

    briefer: Briefer
    operation: str
    digits: int
    prompt: str
    held_out: bool
    size: int
    name: str = "arithmetic"
    has_verifier: bool = True

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        check_index(index, self.size)
        return self.sample(index, *self.operands(index))

    def operands(self, index: int) -> tuple[int, int]:
        bound = 10**self.digits
        if self.held_out:
            a, b = shuffled_pair(index, bound)
            return (b, a) if _mix(index) % 2 else (a, b)
        a, b = shuffled_pair(held_out_pairs(bound) + index // 2, bound)
        return (b, a) if index % 2 else (a, b)

    def sample(self, index: int, a: int, b: int) -> Sample:
        prompt = self.problem(a, b)
        answer = OPERATIONS[self.operation](a, b)
        origin = Origin("data.prompt", f"the problem {prompt!r}")
        sample = Sample(index, *self.briefer.encoder.text(prompt, str(answer), origin), answer=answer)
        fields = {"a": a, "b": b, "operator": self.operation, "prompt": prompt, "answer": answer}
        return self.briefer(sample, fields, origin)

    def score(self, sample: Sample, completion: str) -> float:
        """1.0 if the first number of the completion is the answer."""
        number = re.search(r"-?[0-9]+", completion)
        # Python refuses to convert strings of thousands of digits.
        return float(number is not None and len(number[0]) < 32 and int(number[0]) == sample.answer)

    def row(self, index: int) -> dict[str, Any]:
        check_index(index, self.size)
        a, b = self.operands(index)
        answer = str(OPERATIONS[self.operation](a, b))
        return self.briefer.encoder.row(self.problem(a, b), answer) | {"answer": answer}

    def problem(self, a: int, b: int) -> str:
        return self.prompt.format(a=a, b=b, operator=self.operation)

    def solve(self, prompt: str) -> int | None:
        """The answer to a problem that somebody else has set; None if it is not in the form of :attr:`prompt`."""
        number = {"a": "(?P<a>[0-9]{1,31})", "b": "(?P<b>[0-9]{1,31})", "operator": re.escape(self.operation)}
        form, known = "", set[str]()
        for literal, field, _, _ in Formatter().parse(self.prompt):
            form += re.escape(literal)
            if field is not None:
                form += f"(?P={field})" if field in known - {"operator"} else number[field]
                known.add(field)
        found = re.fullmatch(form, prompt)
        return None if found is None else int(OPERATIONS[self.operation](int(found["a"]), int(found["b"])))

    def describe(self) -> dict[str, Any]:
        return {
            "source": "arithmetic",
            "operator": self.operation,
            "digits": self.digits,
            "prompt": self.prompt,
            "rows": self.size,
            "split": f"{'in' if self.held_out else 'not in'} the held-out tenth of operand pairs (fixed)",
        }

    def fingerprint(self) -> str:
        return digest(self.describe())


def build(config: Mapping[str, Any], briefer: Briefer) -> tuple[Arithmetic, Arithmetic]:
    """Training and held-out problems. Raises UserError for a prompt that lacks an operand or cannot be encoded."""
    _check_prompt(config["prompt"])
    bound = 10 ** config["digits"]
    aside = held_out_pairs(bound)
    sizes = {False: min(TRAIN_LIMIT, 2 * (_pairs(bound) - aside)), True: min(config["eval_size"], aside)}
    train, held_out = (
        Arithmetic(briefer, config["operator"], config["digits"], config["prompt"], side, sizes[side])
        for side in (False, True)
    )
    longest = train.sample(0, bound - 1, bound - 1)
    unknown = briefer.encoder.tokenizer.unk_token_id
    written = ("data.prompt", config["prompt"], longest.prompt_ids)
    told = ("teacher.prompt", briefer.needs.prompt, longest.briefing.prompt_ids)
    for key, template, ids in (written, told):
        if unknown is not None and unknown in ids:
            raise UserError(key, template, "text of characters that the tokenizer knows")
    return train, held_out


def held_out_pairs(bound: int) -> int:
    """Number of unordered pairs that are set aside, of all pairs of numbers below ``bound``."""
    return _pairs(bound) // HELD_OUT_SHARE


def shuffled_pair(index: int, bound: int) -> tuple[int, int]:
    """Entry ``index`` of a fixed shuffle of the pairs ``0 <= a <= b < bound`` (``bound`` even).

    A Feistel network on the rectangle of ``bound/2`` by ``bound + 1``, into which the triangle of pairs folds exactly:
    a bijection in constant time and memory.
    """
    half = bound // 2
    row, column = divmod(index, bound + 1)
    for step in range(ROUNDS):
        row = (row + _mix(2 * step * bound + column)) % half
        column = (column + _mix((2 * step + 1) * bound + row)) % (bound + 1)
    return (column, row) if column <= row else (column - row - 1, bound - 1 - row)


def _pairs(bound: int) -> int:
    return bound * (bound + 1) // 2


def _mix(value: int) -> int:
    """SplitMix64's output function (Steele et al. 2014), a hash of 64 bits."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def _check_prompt(prompt: str) -> None:
    allowed = "a template with {a}, {b} and, if wanted, {operator}"
    try:
        fields = {field for _, field, _, _ in Formatter().parse(prompt) if field is not None}
        prompt.format(a=1, b=1, operator="+")
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError("data.prompt", prompt, allowed) from error
    if not {"a", "b"} <= fields <= {"a", "b", "operator"}:
        raise UserError("data.prompt", prompt, allowed)
