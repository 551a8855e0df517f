"""FASTA files: records of several lines, UniRef's headers, and what is torn."""

from __future__ import annotations

import gzip

import pytest

from adaptome.core.errors import DataError
from adaptome.data import load_splits


def test_records_and_places(tmp_path):
    path = tmp_path / "some.fasta"
    path.write_text(">sp|P1 A protein\nMKV\nLA\n\n>P2\nACDX*\n")
    split = load_splits(train=str(path), validation_fraction=0)["train"]
    assert split.rows["sequence"] == ["MKVLA", "ACDX*"] and split.rows["name"] == ["sp|P1", "P2"]
    assert split.rows["description"] == ["A protein", ""] and split.where(1).endswith("some.fasta, line 5")


def test_uniref(tmp_path):
    path = tmp_path / "uniref50.fasta.gz"
    text = ">UniRef50_Q9K794 Putative AgrB-like protein n=2 Tax=Bacillus sp. TaxID=1386 RepID=AGRB_BACHD\nMK\n>UniRef50_A0 Titin n=1\nML\n"
    path.write_bytes(gzip.compress(text.encode()))
    rows = load_splits(train=str(path), validation_fraction=0)["train"].rows
    assert (
        rows["description"] == ["Putative AgrB-like protein", "Titin"]
        and rows["members"] == [2, 1]
        and rows["taxon"] == ["Bacillus sp.", ""]
    )


@pytest.mark.parametrize("text, told", [
    ("MKV\n", "line 1: a sequence before the first header"), (">a\nMK\n>\nAC\n", "line 3: a header"), (">a\n>b\nMK\n", "line 1: the record 'a' has no sequence"),
    (">a\nMKV>b\n", "line 2: '>' within a sequence"),
])  # fmt: skip
def test_what_is_torn_is_named(text, told, tmp_path):
    (tmp_path / "x.fasta").write_text(text)
    with pytest.raises(DataError, match=told):
        load_splits(train=str(tmp_path / "x.fasta"))
