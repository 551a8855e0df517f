"""M2 files: written as the tool writes them, read back to the same scores, and refused where they are torn."""

import pytest
from typer.testing import CliRunner

from adaptome.cli._app import build
from adaptome.core.errors import DataError
from adaptome.grammar import corpus
from adaptome.grammar.m2 import block, read_m2, scored, write_m2

SOURCES = ["大约三年左右。", "看看", "他在去学校", "好。"]
TOLD = ["大约三年。", "不看了", "他去学校", "好吗。"]
RIGHT = [["大约三年。"], ["不看了"], ["他正在去学校", "他去学校"], ["没有错误"]]


def test_a_block_has_the_tools_layout():
    assert block("不仅是国内", ["不仅是在国内", "不仅在国内", "不仅是国内", "无法标注"]) == (
        "S 不 仅 是 国 内\n"
        "T0-A0 不 仅 是 在 国 内\n"
        "A 3 3|||M|||在|||REQUIRED|||-NONE-|||0\n"
        "T1-A0 不 仅 在 国 内\n"
        "A 2 3|||S|||在|||REQUIRED|||-NONE-|||1\n"
        "T2 没有错误\n"
        "A -1 -1|||noop|||-NONE-|||REQUIRED|||-NONE-|||2\n"
        "T3 无法标注\n"
        "A -1 -1|||NA|||-NONE-|||REQUIRED|||-NONE-|||3"
    )


@pytest.fixture
def files(tmp_path):
    told, right = tmp_path / "told.m2", tmp_path / "right.m2"
    write_m2(told, [block(s, [t]) for s, t in zip(SOURCES, TOLD, strict=True)])
    write_m2(right, [block(s, t) for s, t in zip(SOURCES, RIGHT, strict=True)])
    return told, right


def test_files_score_as_the_texts_do(files):
    assert scored(*files) == corpus(SOURCES, TOLD, RIGHT)


def test_torn_and_foreign_files_are_refused_by_line(files, tmp_path):
    told, right = files
    text = told.read_text(encoding="utf-8")
    torn = tmp_path / "torn.m2"
    for cut, match in (
        (text[: text.index("|||R|||") + 4], "line 3.*Is the file whole"),
        ("", "no sentence"),
        ("hello", "line 1"),
    ):
        torn.write_text(cut, encoding="utf-8")
        with pytest.raises(DataError, match=match):
            read_m2(torn)
    torn.write_text("A 0 1|||R|||-NONE-|||REQUIRED|||-NONE-|||0", encoding="utf-8")
    with pytest.raises(DataError, match="before any sentence"):
        read_m2(torn)
    torn.write_text("S 好 。\nA 1 9|||R|||-NONE-|||REQUIRED|||-NONE-|||0", encoding="utf-8")
    with pytest.raises(DataError, match="tokens 1 to 9 of a sentence of 2"):
        read_m2(torn)
    torn.write_text("S 好 。\n", encoding="utf-8")
    with pytest.raises(DataError, match="1 sentences.* 4"):
        scored(torn, right)
    torn.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as M2"):
        read_m2(torn)


def test_the_command_extracts_and_scores(tmp_path):
    run = CliRunner()
    for name, columns in (("told", [[t] for t in TOLD]), ("right", RIGHT)):
        lines = [
            "\t".join((str(n), s, *texts)) for n, (s, texts) in enumerate(zip(SOURCES, columns, strict=True))
        ]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines), encoding="utf-8")
        made = run.invoke(
            build(), ["m2", "extract", str(tmp_path / f"{name}.tsv"), "-o", str(tmp_path / f"{name}.m2")]
        )
        assert made.exit_code == 0, made.output
    found = run.invoke(
        build(), ["m2", "score", str(tmp_path / "told.m2"), str(tmp_path / "right.m2"), "--json"]
    )
    assert f'"tp": {corpus(SOURCES, TOLD, RIGHT).tp}' in found.output
    (tmp_path / "bad.tsv").write_text("1\t只有一句", encoding="utf-8")
    bad = run.invoke(build(), ["m2", "extract", str(tmp_path / "bad.tsv"), "-o", str(tmp_path / "bad.m2")])
    assert isinstance(bad.exception, DataError) and "line 1" in str(bad.exception)
    assert not (tmp_path / "bad.m2").exists()
