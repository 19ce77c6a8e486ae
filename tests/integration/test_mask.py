"""``distill mask`` through the command line: every rule, matched counts, and what it refuses."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.analysis.fingerprint import of_folder
from distill.analysis.source import Folder
from distill.cli import main
from distill.maskfile import MaskFile

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SHAPES = {
    EMBED: (30, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.mlp.up_proj.weight": (33, 16),
    "model.layers.1.conv.weight": (4, 3, 2, 2),
    "model.layers.1.scale": (),
    "model.layers.1.nothing": (0, 5),
    "model.norm.weight": (17,),
}
SIZES = {name: torch.Size(shape).numel() for name, shape in SHAPES.items()}


def weights(update: float = 0.0, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    found["model.norm.weight"] = torch.ones(17)
    found[EMBED][:10] = found[EMBED][10:20].abs().round(decimals=2)  # many ties
    generator.manual_seed(seed)
    return {name: value + update * torch.randn(value.shape, generator=generator) for name, value in found.items()}


def folder(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints ``source``, ``trained`` and ``other``, and the masks ``own`` and ``others`` of the two runs."""
    root = tmp_path_factory.mktemp("made")
    folder(root / "source", weights())
    folder(root / "trained", weights(3e-5))
    folder(root / "other", weights(8e-5, seed=2))
    for run, mask in (("trained", "own"), ("other", "others")):
        assert distill(root, f"source={root}/source", f"trained={root}/{run}", f"out={root}/{mask}") == 0
    return root


def distill(root: Path, *words: str) -> int:
    return main(["mask", *words, f"hydra.run.dir={root}"])


def refusal(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> str:
    capsys.readouterr()
    assert distill(root, *words) == 2
    error = capsys.readouterr().err.strip().removeprefix("error: ")
    assert "Traceback" not in error
    return error


def test_the_mask_of_an_update(made: Path) -> None:
    found = MaskFile(made / "own", "mask")
    assert dict(found.shapes) == SHAPES
    source, trained = weights(), weights(3e-5)
    for name in SHAPES:
        delta = trained[name].bfloat16() - source[name].bfloat16()
        assert torch.equal(found.mask(name), delta.abs().float() > torch.tensor(1e-5))
    assert 0.1 < found.density < 0.9
    told = found.provenance
    with Folder(made / "source", "a") as before, Folder(made / "trained", "b") as after:
        assert (told.source, told.trained) == (of_folder(before), of_folder(after))
    assert (told.rule, told.tolerance, told.precision) == ("updated", 1e-5, "bf16")
    assert (told.seed, told.scope, told.requested, told.like, told.masks) == (None, None, None, None, ())


CONTROLS = {
    "random": ["source={0}/source"],
    "low": ["source={0}/source"],
    "principal": ["source={0}/source"],
    "rounding_null": ["source={0}/source", "trained={0}/trained"],
    "match": ["masks=[{0}/others]"],
}


def control(made: Path, out: Path, rule: str, *words: str) -> MaskFile:
    inputs = [word.format(made) for word in CONTROLS[rule]]
    assert distill(out.parent, f"rule={rule}", *inputs, *words, f"out={out}") == 0
    return MaskFile(out, "mask")


@pytest.mark.parametrize("rule", CONTROLS)
def test_controls_have_exactly_the_counts_asked_for(rule: str, made: Path, tmp_path: Path) -> None:
    own = MaskFile(made / "own", "mask")
    like = control(made, tmp_path / "like", rule, f"like={made}/own")
    assert like.counts == own.counts
    assert like.provenance.source == own.provenance.source
    assert like.provenance.like == own.checksum
    total = sum(own.counts.values())
    everywhere = control(made, tmp_path / "global", rule, f"like={made}/own", "scope=global")
    assert sum(everywhere.counts.values()) == total
    assert everywhere.counts != own.counts
    share = control(made, tmp_path / "share", rule, "density=0.3")
    assert share.counts == {name: -(-3 * numel // 10) for name, numel in SIZES.items()}
    assert share.provenance.requested == 0.3
    spread = control(made, tmp_path / "spread", rule, "density=0.3", "scope=global")
    assert sum(spread.counts.values()) == -(-3 * sum(SIZES.values()) // 10)
    for found in (like, everywhere, share, spread):
        assert {name: int(found.mask(name).sum()) for name in found.names} == found.counts


@pytest.mark.parametrize("rule", ["random", "rounding_null", "match"])
def test_the_seed_decides(rule: str, made: Path, tmp_path: Path) -> None:
    first, same, other = (
        control(made, tmp_path / out, rule, "density=0.3", f"seed={seed}")
        for out, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert first.checksum == same.checksum
    assert any(not torch.equal(first.mask(name), other.mask(name)) for name in first.names)


def test_another_runs_mask_is_thinned_out_or_filled_up(made: Path, tmp_path: Path) -> None:
    others = MaskFile(made / "others", "mask")
    for found in (control(made, tmp_path / f"{share}", "match", f"density={share}") for share in (0.3, 0.95)):
        for name in found.names:
            mine, its = found.mask(name), others.mask(name)
            assert int((mine & its).sum()) == min(int(mine.sum()), int(its.sum()))


def test_union_and_intersection(made: Path, tmp_path: Path) -> None:
    masks = f"masks=[{made}/own,{made}/others]"
    own, others = (MaskFile(made / name, "mask") for name in ("own", "others"))
    for rule in ("union", "intersection"):
        assert distill(tmp_path, f"rule={rule}", masks, f"out={tmp_path}/{rule}") == 0
        found = MaskFile(tmp_path / rule, "mask")
        assert found.provenance.masks == (own.checksum, others.checksum)
        for name in SHAPES:
            one, two = own.mask(name), others.mask(name)
            assert torch.equal(found.mask(name), one | two if rule == "union" else one & two)


def test_sharding_dtype_and_wrappers_change_nothing(made: Path, tmp_path: Path) -> None:
    """The same values in shards, the trained ones under a wrapper's names and with a copy of the tied embedding."""
    source, trained = weights(), weights(3e-5)
    path = tmp_path / "source"
    path.mkdir()
    files = {name: f"part-{number}.safetensors" for number, name in enumerate(reversed(SHAPES))}
    for name, file in files.items():
        save_file({name: source[name]}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    stored = {f"language_model.{name}": value for name, value in trained.items()}
    folder(tmp_path / "trained", stored | {HEAD: trained[EMBED].clone()})
    words = (f"source={path}", f"trained={tmp_path}/trained")
    assert distill(tmp_path, *words, f"out={tmp_path}/own") == 0
    assert (tmp_path / "own").read_bytes() == (made / "own").read_bytes()
    for rule in ("random", "low", "rounding_null"):
        inputs = words if rule == "rounding_null" else words[:1]
        assert distill(tmp_path, f"rule={rule}", *inputs, "density=0.2", f"out={tmp_path}/{rule}") == 0
        expected = control(made, tmp_path / f"{rule}-expected", rule, "density=0.2")
        found = MaskFile(tmp_path / rule, "mask")
        assert all(torch.equal(found.mask(name), expected.mask(name)) for name in SHAPES)


def cells(text: str) -> dict[str, Sequence[str]]:
    rows = (re.split(r"\s*│\s*", line.strip("│ ")) for line in text.splitlines() if "│" in line)
    return {first: rest for first, *rest in rows}


def test_what_is_printed(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    low = control(made, tmp_path / "low", "low", f"like={made}/own", "scope=global")
    shown = capsys.readouterr().out
    own = MaskFile(made / "own", "mask")
    both = sum(int((low.mask(name) & own.mask(name)).sum()) for name in SHAPES)
    expected = sum(low.counts[name] * own.counts[name] / SIZES[name] for name in SHAPES if SIZES[name])
    total, numel = sum(own.counts.values()), sum(SIZES.values())
    assert cells(shown)["all"] == [
        f"{numel:,}",
        f"{total:,}",
        f"{total / numel:.2%}",
        f"{both / total:.2%}",
        f"{expected / total:.2%}",
        f"{both / expected:.3f}",
    ]
    assert list(cells(shown)) == ["attention", "mlp", "embedding", "norm", "other", "all"]
    assert "1 of 7 tensors have no coordinate in the mask: model.norm.weight" in shown
    assert f"for the weights {own.provenance.source[:12]}" in shown


IMPOSSIBLE = {
    "": "`source` must be given with rule=updated (folder of the weights before training)",
    "rule=low source=a": "`density` must be given with rule=low, unless `like` is",
    "rule=low source=a density=0.1 like=b": "`density` must be null beside `like`",
    "rule=low source=a density=0.1 trained=b": "`trained` must be left out with rule=low",
    "rule=low source=a density=0.1 seed=1": "`seed` must be left out with rule=low",
    "rule=random source=a density=0.1 tolerance=0": "`tolerance` must be left out with rule=random",
    "rule=random source=a density=0": "`density` must be greater than 0",
    "rule=union masks=[a]": "`masks` must be a list of at least two mask files with rule=union",
    "rule=match masks=[a,b] like=c": "`masks` must be a list of one mask file with rule=match",
    "rule=union masks=[a,b] source=c": "`source` must be left out with rule=union",
    "source=a trained=b scope=global": "`scope` must be left out with rule=updated",
    "source=a trained=b tolerance=-1": "`tolerance` must be greater than or equal to 0",
    "rule=lov source=a": "`rule` must be one of",
}


@pytest.mark.parametrize("words", IMPOSSIBLE)
def test_impossible_combinations(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, tmp_path, *words.split(), f"out={tmp_path}/out").startswith(IMPOSSIBLE[words])


def test_nothing_is_overwritten(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (made / "own").read_bytes()
    text = refusal(capsys, made, f"source={made}/source", f"trained={made}/other", f"out={made}/own")
    assert text.startswith("`out` must be a new file (it is there already)")
    assert (made / "own").read_bytes() == before


def broken() -> dict[str, dict[str, Tensor]]:
    good = weights(3e-5)
    nan = {name: value.clone() for name, value in good.items()}
    nan["model.norm.weight"][3] = float("nan")
    return {
        "same": weights(),
        "less": {name: value for name, value in good.items() if name != "model.norm.weight"},
        "more": good | {HEAD: good[EMBED] + 1},
        "bent": good | {EMBED: good[EMBED].reshape(16, 30).contiguous()},
        "alien": {"x": torch.ones(3)},
        "whole": {"x": torch.arange(3)},
        "nan": nan,
    }


REFUSED = {
    "source={0}/source trained={1}/same": "`trained` must be a checkpoint in which a coordinate moved by more than 1e-",
    "source={0}/source trained={1}/less": "no more and no less (1 missing (model.norm.weight))",
    "source={0}/source trained={1}/more": "no more and no less (1 extra (lm_head.weight))",
    "source={0}/source trained={1}/bent": "no more and no less (1 mis-shaped (model.embed_tokens.weight",
    "source={0}/source trained={1}/alien": "`trained` must be a checkpoint with the tensors of",
    "source={0}/source trained={1}/nan": "`trained` must be a checkpoint of finite weights ('model.norm.weight' holds",
    "rule=random source={1}/nan density=0.1": "`source` must be a checkpoint of finite weights",
    "rule=random source={1}/whole density=0.1": "`source` must be a checkpoint with weights in it",
    "rule=random source={1}/nowhere density=0.1": "`source` must be an existing folder with safetensors",
    "rule=random source={0}/source like={0}/source": "`like` must be an existing mask file",
    "rule=random source={0}/source like={0}/source/model.safetensors": "`like` must be a mask file made by",
    "rule=random source={0}/trained like={0}/own": "`like` must be a mask made for these weights",
    "rule=random source={1}/alien like={0}/own": "`like` must be a mask of the model's tensors (7 missing",
    "rule=union masks=[{0}/own,{1}/mask]": "`masks` must be a mask made for these weights",
    "rule=match masks=[{0}/nowhere] density=0.1": "`masks` must be an existing mask file",
    "rule=intersection masks=[{1}/first,{1}/second]": "`masks` must be masks with a coordinate in common",
}


@pytest.fixture(scope="module")
def bad(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bad")
    for name, tensors in broken().items():
        folder(root / name, tensors)
    words = ("rule=random", f"source={made}/trained", "density=0.1", f"out={root}/mask")
    assert distill(root, *words) == 0
    # One coordinate each, in two different places.
    still = {name: value.clone() for name, value in weights().items()}
    for place, name in enumerate(("first", "second")):
        moved = still | {EMBED: still[EMBED].clone()}
        moved[EMBED].view(-1)[place] += 1
        folder(root / f"moved-{name}", moved)
        words = (f"source={made}/source", f"trained={root}/moved-{name}", f"out={root}/{name}")
        assert distill(root, *words) == 0
    return root


@pytest.mark.parametrize("words", REFUSED)
def test_inputs_that_cannot_be_used(
    words: str, made: Path, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refusal(capsys, tmp_path, *words.format(made, bad).split(), f"out={tmp_path}/out")
    assert REFUSED[words] in text
    assert "\n" not in text
    assert not [*tmp_path.iterdir()]
