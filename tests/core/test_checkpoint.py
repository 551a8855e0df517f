"""Loading gives what was saved, bit for bit, or says what is wrong; nothing else, whatever the bytes are."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

import adaptome as ad
from adaptome.core.errors import (
    BaseMismatchError,
    CheckpointError,
    FormatError,
    KeyMismatchError,
    NonFiniteError,
    StateError,
    TornFileError,
)
from adaptome.core.fingerprint import check_base, fingerprint
from tests.core.models import IDS, Net, move, run, same, snapshot

FIXTURE = Path(__file__).parent / "fixtures" / "format-1"


@pytest.fixture
def folder(tmp_path) -> Path:
    model = Net()
    ad.attach(model, "lora", r=2, targets=["wide", "narrow"], train=["classifier"], seed=1)
    move(model)
    return ad.save(model, tmp_path / "a", base_id="net")


def rewrite(folder: Path, **changes: Any) -> None:
    """Change entries of the manifest; '__' goes down one level."""
    manifest = json.loads((folder / "adaptome.json").read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        place = manifest
        for part in path:
            place = place[part]
        place[last] = value
    (folder / "adaptome.json").write_text(json.dumps(manifest))


def retensor(folder: Path, change) -> None:
    """Change the tensors and let the manifest agree with the new bytes."""
    tensors = load_file(folder / "adapter.safetensors")
    data = save(change(dict(tensors)))
    (folder / "adapter.safetensors").write_bytes(data)
    rewrite(folder, tensors__sha256=hashlib.sha256(data).hexdigest())


def refuses(folder: Path, error: type[Exception], words: str, base: torch.nn.Module | None = None) -> None:
    model = base if base is not None else Net()
    before = snapshot(model)
    with pytest.raises(error, match=words):
        ad.load(model, folder)
    assert same(snapshot(model), before), "a load that fails changes nothing"


def test_it_loads_bit_for_bit_frozen_and_reports(folder):
    model, other = Net(), Net()
    ad.attach(model, "lora", r=2, targets=["wide", "narrow"], train=["classifier"], seed=1)
    move(model)
    report = ad.load(other, folder)
    assert torch.equal(run(other), run(model))
    assert ad.trainable(other).count == 0
    assert (report.name, report.method, report.base) == ("default", "lora", "structure and weights")
    assert report.tensors == 6 and report.numbers == 2 * (8 + 12) * 2 + 8 * 3 + 3
    assert "6 tensors" in str(report) and report.manifest["base"]["id"] == "net"
    ad.load(Net(), folder, "mine", trainable=True)


def test_the_stored_adapter_of_format_1_still_loads():
    sys.path.insert(0, str(FIXTURE.parent))
    from make_format_1 import base

    model = base()
    ad.load(model, FIXTURE)
    expected = torch.tensor(json.loads((FIXTURE.parent / "format-1-outputs.json").read_text()))
    torch.testing.assert_close(run(model, torch.arange(6).view(2, 3)), expected, rtol=1e-5, atol=1e-6)


def test_no_folder_or_another_folder(tmp_path):
    refuses(tmp_path / "none", CheckpointError, "no adaptome.json \\(there is no such folder\\)")
    (tmp_path / "weights.bin").touch()
    refuses(tmp_path, CheckpointError, r"it holds \['weights.bin'\]")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ('{"format": 1, "libra', TornFileError, "not whole JSON"),
        ("[" * 100_000, TornFileError, "not whole JSON"),
        ('{"library": "adaptome", "format": NaN}', TornFileError, "NaN is not JSON"),
        ("[]", FormatError, "not an adaptome manifest"),
        ('{"library": "other", "format": 1}', FormatError, "not an adaptome manifest"),
        ('{"library": "adaptome", "format": true}', FormatError, "not an adaptome manifest"),
        ('{"library": "adaptome", "format": 1}', FormatError, "lacks method, settings, targets, base, tensors, seed"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none(folder, text, error, words):
    (folder / "adaptome.json").write_text(text)
    refuses(folder, error, words)


def test_bytes_that_are_not_text(folder):
    (folder / "adaptome.json").write_bytes(b"\xff\xfe\x00{")
    refuses(folder, TornFileError, "not whole JSON")


def test_a_newer_format_says_to_upgrade(folder):
    rewrite(folder, format=2)
    refuses(folder, FormatError, r"format 2; this adaptome \(.*\) reads up to 1.\n  Upgrade adaptome")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": 3}, "method"), ({"settings": []}, "settings"), ({"targets": []}, "targets"), ({"targets": [None]}, "targets"),
        ({"seed": "1"}, "seed"), ({"seed": 1.5}, "seed"), ({"dtype": "load"}, "dtype"), ({"train": "classifier"}, "train"),
        ({"heads": {}}, "heads"), ({"per_layer": {"x": 1}}, "per_layer"), ({"tensors": None}, "tensors.sha256"),
        ({"base": 1}, "base"), ({"base__names": None}, "base.names"), ({"base__sample": {"wide.weight": [1, 2]}}, "base.sample"),
        ({"base__sample": {"wide.weight": ["a", 1, 2, 3]}}, "base.sample"), ({"base__id": {}}, "base.id"),
    ],
)  # fmt: skip
def test_an_entry_of_the_wrong_type_is_named(folder, changes, named):
    rewrite(folder, **changes)
    refuses(folder, FormatError, f"{named}.* is not what ad.save writes there")


def test_an_unknown_method_names_the_nearest(folder):
    rewrite(folder, method="lorra")
    refuses(folder, CheckpointError, "no method is called 'lorra'. Nearest: lora")


def test_an_unknown_or_impossible_setting(folder):
    rewrite(folder, settings__rank=2)
    refuses(folder, CheckpointError, "no setting 'rank'")
    rewrite(folder, settings={"r": 0})
    refuses(folder, CheckpointError, "must be at least 1")


def test_settings_that_ask_for_more_than_the_file_holds_build_nothing(folder):
    rewrite(folder, settings__r=10**12)
    refuses(folder, KeyMismatchError, "ask for .* numbers and the file holds 107")


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_torn_tensors(folder, size):
    data = (folder / "adapter.safetensors").read_bytes()
    (folder / "adapter.safetensors").write_bytes(data[:size])
    refuses(folder, TornFileError, "is not what was saved: its sha256 differs")


def test_one_changed_bit(folder):
    data = bytearray((folder / "adapter.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "adapter.safetensors").write_bytes(data)
    refuses(folder, TornFileError, "torn, or changed after saving")


def test_missing_tensors_file_and_bytes_that_are_not_safetensors(folder):
    (folder / "adapter.safetensors").write_bytes(b"not tensors")
    rewrite(folder, tensors__sha256=hashlib.sha256(b"not tensors").hexdigest())
    refuses(folder, TornFileError, "not a whole safetensors file")
    (folder / "adapter.safetensors").unlink()
    refuses(folder, TornFileError, "adapter.safetensors is missing")


def test_missing_and_unexpected_keys_are_named_with_a_guess(folder):
    retensor(folder, lambda t: {k.replace("wide.A", "wide.a"): v for k, v in t.items()})
    refuses(
        folder,
        KeyMismatchError,
        r"1 missing \(wide.A\), 1 unexpected \(wide.a\).\n  Perhaps wide.a is wide.A",
    )


def test_another_shape(folder):
    retensor(folder, lambda t: t | {"wide.A": t["wide.A"].t().contiguous()})
    refuses(folder, KeyMismatchError, r"wide.A: \[8, 2\] stored, \[2, 8\] here")


def test_another_type(folder):
    retensor(folder, lambda t: t | {"wide.A": t["wide.A"].long()})
    refuses(folder, KeyMismatchError, "wide.A: int64 stored, float32 here")
    retensor(folder, lambda t: t | {"wide.A": torch.zeros(2, 8, dtype=torch.complex64)})
    refuses(folder, FormatError, r"types that no adapter has: wide.A \(complex64\)")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_neither_saved_nor_loaded(folder, value, tmp_path):
    retensor(folder, lambda t: t | {"wide.A": t["wide.A"].fill_(value)})
    refuses(folder, NonFiniteError, "1 tensors hold NaN or infinity, first wide.A")
    model = Net()
    ad.attach(model, "lora", r=2, targets="wide")
    with torch.no_grad():
        ad.parameters_of(model)["wide.A"][0, 0] = value
    with pytest.raises(NonFiniteError, match=r"\(wide.A\); nothing was written"):
        ad.save(model, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_another_base_by_names_shapes_and_weights(folder):
    refuses(
        folder,
        BaseMismatchError,
        "saved from net, whose parameters have other names",
        torch.nn.Sequential(Net()),
    )
    refuses(folder, BaseMismatchError, "whose parameters have other shapes", Net(hidden=16))
    refuses(folder, BaseMismatchError, "the same structure but other weights", Net(seed=1))
    model = Net(seed=1)
    assert ad.load(model, folder, check_base=False).base == "nothing: not checked"


@pytest.mark.parametrize(
    ("method", "settings"), [("clip-svd", {}), ("loldu", {"r": 2}), ("lora", {"r": 2, "init": "pissa"})]
)
def test_what_is_relative_to_a_factorisation_refuses_a_rounded_base(method, settings, tmp_path):
    model = Net()
    ad.attach(model, method, targets="wide", **settings)
    ad.save(model, tmp_path / "a")
    assert ad.load(Net(), tmp_path / "a").base == "structure and weights"
    with pytest.raises(BaseMismatchError, match="in another precision .* relative to a factorisation"):
        ad.load(Net().bfloat16(), tmp_path / "a")
    assert ad.load(Net().bfloat16(), tmp_path / "a", check_base=False).base == "nothing: not checked"


def test_what_is_relative_to_a_factorisation_refuses_a_base_packed_otherwise():
    stored = fingerprint(Net()) | {"structure": None, "packed": ["Params4bit"]}  # as a packed base has it
    assert check_base(Net(), stored, "net", ()) == "structure and weights"
    with pytest.raises(
        BaseMismatchError, match=r"saved from net, quantised \(Params4bit\), and is not quantised here"
    ):
        check_base(Net(), stored, "net", (), exact=True)
    del stored["packed"]  # as older files have it
    with pytest.raises(BaseMismatchError, match="saved from net, quantised, and is not quantised here"):
        check_base(Net(), stored, "net", (), exact=True)


@pytest.mark.parametrize("first", ["dense", "int8"])
def test_a_base_that_torchao_rounded_is_told_from_a_dense_one(first, tmp_path):
    quantisation = pytest.importorskip("torchao.quantization")

    def base(kind):
        torch.manual_seed(0)
        model = Net()
        if kind != "dense":
            how = {"int8": quantisation.Int8WeightOnlyConfig, "int4": quantisation.IntxWeightOnlyConfig}[kind]
            quantisation.quantize_(model, how(), filter_fn=lambda _, path: path == "wide")
        return model

    model = base(first)
    ad.attach(model, "clip-svd", targets="wide")
    ad.save(model, tmp_path / "a")
    for kind in ("dense", "int8", "int4"):
        if kind == first:
            ad.load(base(kind), tmp_path / "a")
            continue
        with pytest.raises(BaseMismatchError, match="quantised.* relative to a factorisation"):
            ad.load(base(kind), tmp_path / "a")


def test_the_base_may_have_another_precision_and_another_head(folder):
    model = Net().bfloat16()
    assert ad.load(model, folder).base == "structure and weights"
    other = Net()
    torch.nn.init.normal_(other.classifier.weight)
    ad.load(other, folder)
    assert torch.equal(run(other), run(loaded(Net(), folder)))


def loaded(model, folder):
    ad.load(model, folder)
    return model


def test_it_is_saved_from_a_merged_model_as_from_any_other(folder, tmp_path):
    model = loaded(Net(), folder)
    before = run(model)
    ad.merge(model)
    ad.save(model, tmp_path / "b")
    assert torch.equal(run(loaded(Net(), tmp_path / "b")), before)


def test_targets_that_are_not_there_or_not_admitted(folder):
    rewrite(folder, targets=["wide", "left"])
    refuses(folder, BaseMismatchError, "saved from net: .*'=left' matches no module")
    rewrite(folder, targets=["norm"])
    refuses(folder, CheckpointError, "lora cannot be put on norm")


def test_a_taken_name_is_the_callers_fault(folder):
    model = loaded(Net(), folder)
    with pytest.raises(StateError, match="'default' is attached already"):
        ad.load(model, folder)
    ad.load(model, folder, "second")
    assert ad.active(model) == ["default", "second"]


def test_saving_replaces_an_adapter_folder_and_nothing_else(folder, tmp_path):
    model = loaded(Net(), folder)
    move(model)
    ad.save(model, folder)
    assert torch.equal(run(loaded(Net(), folder)), run(model))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"thesis.tex"):
        ad.save(model, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_shared_tensors_are_stored_once(tmp_path):
    from tests.core.models import llama

    model = llama(tie=True)
    ad.attach(model, "lora", r=2, targets="q", train=["lm_head"])
    ad.save(model, tmp_path / "a")
    heads = [k for k in load_file(tmp_path / "a" / "adapter.safetensors") if not k.endswith((".A", ".B"))]
    assert len(heads) == 1


# -- fuzz: never anything but CheckpointError ----------------------------------------------------------------------

VALUES: list[Any] = [
    None, True, 0, -1, 10**40, 1.5, 1e308, "", "x", "lora", "\u0000", [], [1], ["wide"], [["wide"]], {}, {"r": 2}, {"wide": {"r": 3}}, [None] * 4,
]  # fmt: skip


def mutate(value: Any, chance: random.Random) -> Any:
    """The value with one random entry, at any depth, replaced, dropped, doubled or renamed."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        match chance.randrange(6):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {(k + "x" if k == key else k): v for k, v in value.items()}
            case _:
                return value | {key: mutate(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        at = chance.randrange(len(value))
        return [*value[:at], mutate(value[at], chance), *value[at + chance.randrange(2) :]]
    return chance.choice(VALUES)


def load_or_refuse(folder: Path) -> bool:
    """Whether it loads; any error but a CheckpointError fails the test."""
    model = Net()
    before = snapshot(model)
    try:
        ad.load(model, folder)
    except CheckpointError as error:
        said = str(error)
    else:
        said = None
    if said is not None:
        assert said
        assert same(snapshot(model), before)
        return False
    run(model)
    assert all(torch.isfinite(p).all() for p in ad.parameters_of(model).values())
    return True


def test_a_mangled_manifest_is_refused_or_harmless(folder):
    whole = json.loads((folder / "adaptome.json").read_text())
    chance, fates = random.Random(0), []
    for _ in range(250):
        mangled = whole
        for _ in range(chance.randrange(1, 4)):
            mangled = mutate(mangled, chance)
        (folder / "adaptome.json").write_text(json.dumps(mangled))
        fates.append(load_or_refuse(folder))
    assert any(fates) and not all(fates)


def test_mangled_bytes_of_the_manifest_are_refused_or_harmless(folder):
    whole = (folder / "adaptome.json").read_bytes()
    chance = random.Random(1)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        (folder / "adaptome.json").write_bytes(data)
        load_or_refuse(folder)


@pytest.mark.parametrize("agreeing", [False, True], ids=["sha256 differs", "sha256 agrees"])
def test_mangled_bytes_of_the_tensors_are_refused_or_harmless(folder, agreeing):
    whole = (folder / "adapter.safetensors").read_bytes()
    chance = random.Random(2)
    for _ in range(150):
        data = bytearray(whole[: chance.choice([len(whole)] * 3 + [chance.randrange(len(whole))])])
        for _ in range(chance.randrange(1, 4)):
            if data:
                # mostly in the header, where structure is
                data[chance.randrange(min(len(data), 600 if chance.random() < 0.8 else len(data)))] = (
                    chance.randrange(256)
                )
        (folder / "adapter.safetensors").write_bytes(data)
        if agreeing:
            rewrite(folder, tensors__sha256=hashlib.sha256(data).hexdigest())
        assert not load_or_refuse(folder) or agreeing or bytes(data) == whole
    assert IDS.shape == (2, 4)
