"""Sequences and structures: cleaning, measures against hand values and other computations, files of folding tools, and the meter on a fake clock."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from adaptome.core.errors import DataError
from adaptome.proteins import (
    Meter,
    Nearest,
    cleaned,
    divergence,
    identity,
    low_complexity,
    read_folds,
    read_pdb,
    rmsd,
    tm_score,
)
from adaptome.proteins.meter import Counter, Sampled, source
from adaptome.proteins.nearest import GAP, MATCH, MISMATCH
from adaptome.proteins.structures import confidence, scale


def test_letters_are_cleaned_or_refused():
    assert cleaned(" mk v\nL* ") == ("MKVL", None)
    assert cleaned("Seq=<MKV>") == cleaned("Seq=<MKV") == ("MKV", None)
    assert cleaned("MXBV") == ("", "letters that are no amino acid (BX)")
    assert cleaned("MUBZOJ", "map") == ("MCNQKL", None)
    assert cleaned("MXB", "map") == ("", "letters that are no amino acid (X)")
    assert cleaned("MK>V")[1] == "letters that are no amino acid (>)"
    assert cleaned("*") == cleaned("Seq=<>") == ("", "empty")


def test_composition_divergence():
    assert divergence(["ACDE"], ["EDCA", "ACDE"]) == 0
    assert divergence(["AAAA"], ["CCCC"]) == pytest.approx(1) and divergence([], ["A"]) == 1
    p, q, m = {"A": 0.5, "C": 0.5}, {"A": 1.0}, {"A": 0.75, "C": 0.25}
    by_hand = 0.5 * sum(v * math.log2(v / m[k]) for k, v in p.items()) + 0.5 * math.log2(q["A"] / m["A"])
    assert divergence(["AC"], ["AA"]) == pytest.approx(by_hand)


def test_low_complexity():
    varied = "ACDEFGHIKLMNPQRSTVWY"
    assert low_complexity(varied) == 0 and low_complexity("A" * 20) == 1 and low_complexity("AAA") == 0
    assert low_complexity(varied + "A" * 20) == pytest.approx(0.5, abs=0.25)


def every_alignment(a, b):
    """Best score and the identities of all alignments with it, by trying every one."""
    if not a or not b:
        return [(GAP * (len(a) + len(b)), 0, len(a) + len(b))]
    found = [
        (s + (MATCH if a[0] == b[0] else MISMATCH), n + (a[0] == b[0]), m + 1)
        for s, n, m in every_alignment(a[1:], b[1:])
    ]
    found += [(s + GAP, n, m + 1) for s, n, m in every_alignment(a[1:], b)]
    return found + [(s + GAP, n, m + 1) for s, n, m in every_alignment(a, b[1:])]


def test_identity_is_of_a_best_alignment():
    for a, b in itertools.product(("ACD", "AD", "CCA", "DACA"), ("ACD", "CDA", "A", "AACD")):
        all_ = every_alignment(a, b)
        best = max(score for score, _, _ in all_)
        assert any(identity(a, b) == pytest.approx(n / m) for score, n, m in all_ if score == best), (a, b)
    assert (
        identity("MKVLA", "MKVLA") == 1
        and identity("MKVLA", "MKLA") == pytest.approx(4 / 5)
        and identity("", "A") == 0
    )


def test_the_nearest_known_sequence():
    index = Nearest(["MKVLAGHH", "WWYYFFPP", "MKVLAGHD", "MKVLAGHD"])
    assert index("MKVLAGHD") == (1.0, "MKVLAGHD") and index("CCCCC") == (0.0, None)
    assert index("MKVLCGHH") == (pytest.approx(7 / 8), "MKVLAGHH")


def helix(length, seed=0):
    t = np.arange(length)
    return np.stack([2.3 * np.cos(1.745 * t), 2.3 * np.sin(1.745 * t), 1.5 * t], 1) + np.random.default_rng(
        seed
    ).normal(0, 0.3, (length, 3))


def moved(points, seed=1):
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return points @ (turn * np.sign(np.linalg.det(turn))) + [5.0, -30.0, 11.0]


def test_structures_are_compared_whatever_their_place():
    one = helix(40)
    assert rmsd(one, one) == pytest.approx(0, abs=1e-6) and tm_score(one, one) == pytest.approx(1)
    assert rmsd(moved(one), one) == pytest.approx(0, abs=1e-6) and tm_score(moved(one), one) == pytest.approx(
        1
    )
    other = helix(40, 3)
    assert tm_score(moved(other), one) == pytest.approx(tm_score(other, one), abs=1e-6) and rmsd(
        moved(other), one
    ) == pytest.approx(rmsd(other, one))
    assert rmsd(one * [1, 1, -1], one) > 1  # its mirror image
    shift = one + np.array([3.0, 0, 0])
    assert tm_score(shift, one, superpose=False) == pytest.approx(1 / (1 + (3 / scale(40)) ** 2))
    assert scale(40) == pytest.approx(1.24 * 25 ** (1 / 3) - 1.8) and scale(21) == scale(10) == 0.5
    half = one.copy()
    half[20:] += np.random.default_rng(0).normal(0, 15, (20, 3))
    assert tm_score(half, one) > 0.5  # the half that fits is found
    with pytest.raises(DataError, match="do not correspond"):
        rmsd(one, one[:-1])


def atom(number, name, residue, xyz, b, alternate=" "):
    return (
        f"ATOM  {number:5d} {name:^4}{alternate}ALA A{residue:4d}    "
        + "".join(f"{v:8.3f}" for v in xyz)
        + f"  1.00{b:6.2f}           C"
    )


def test_files_of_a_folding_tool(tmp_path):
    lines = [
        atom(1, "N", 1, (0, 0, 0), 10),
        atom(2, "CA", 1, (1, 2, 3), 0.8),
        atom(3, "CA", 2, (4, 5, 6), 0.6),
        atom(4, "CA", 2, (9, 9, 9), 0.1, "B"),
        "ENDMDL",
        atom(5, "CA", 3, (7, 8, 9), 0.9),
    ]
    (tmp_path / "MKV.pdb").write_text("\n".join(lines) + "\n")
    found = read_pdb(tmp_path / "MKV.pdb")
    assert found.coordinates.tolist() == [[1, 2, 3], [4, 5, 6]] and found.mean_plddt == pytest.approx(70)
    assert read_folds(tmp_path) == {"MKV": {"plddt": pytest.approx(70)}}
    esmfold = np.full((2, 37), 0.1)
    esmfold[:, 1] = [0.5, 0.7]
    assert confidence(esmfold).tolist() == [50, 70] and confidence(np.array([55.0, 60])).tolist() == [55, 60]
    table = tmp_path / "hits.tsv"
    table.write_text("query\ttarget\talntmscore\nMKV\ta\t0.4\nMKV\tb\t0.7\nMK\ta\t0.2\n")
    assert read_folds(table) == {"MKV": {"tm": 0.7}, "MK": {"tm": 0.2}}
    table.write_text("name,plddt,tm\nMKV,71.5,0.5\nMK,x,0.1\n")
    with pytest.raises(DataError, match=r"line 3: plddt is 'x'"):
        read_folds(table)
    table.write_text("name,score\nMKV,1\n")
    with pytest.raises(DataError, match="found name, score"):
        read_folds(table)
    with pytest.raises(DataError, match="no C-alpha"):
        (tmp_path / "empty.pdb").write_text("END\n")
        read_pdb(tmp_path / "empty.pdb")


def test_tokens_per_second_and_watt_on_a_fake_clock():
    now, watts = [0.0], [10.0]
    energy = Sampled(lambda: watts[0], lambda: now[0], every=None)
    with Meter(energy, lambda: now[0]) as meter:
        now[0], watts[0] = 2.0, 30.0
        energy.sample()
        meter.count(100)
        now[0], watts[0] = 5.0, 30.0
    joules = (10 + 30) / 2 * 2 + 30 * 3
    assert (
        meter.reading.joules == joules
        and meter.reading.per_second == 20
        and meter.reading.watts == joules / 5
    )
    assert (
        meter.reading.per_second_and_watt == pytest.approx(20 / (joules / 5)) == pytest.approx(100 / joules)
    )


def test_counters_wrap_and_none_is_told(tmp_path):
    domain = tmp_path / "intel-rapl:0"
    for folder in (domain, tmp_path / "intel-rapl:0:0"):
        folder.mkdir()
        (folder / "energy_uj").write_text("900\n")
        (folder / "max_energy_range_uj").write_text("999\n")
    found = source(tmp_path)
    assert isinstance(found, Counter) and found.domains == [domain]
    now = [1.0]
    with Meter(found, lambda: now[0]) as meter:
        (domain / "energy_uj").write_text("400\n")
        now[0] = 2.0
        meter.count(3)
    assert meter.reading.joules == pytest.approx(500e-6) and "RAPL" in meter.reading.method
    assert source(tmp_path / "none") is None
