"""What it costs to put one character in the place of another.

    cost = meaning / 6 + form + punctuation

meaning       0 to 6 by how far apart a thesaurus has the two; 4 where it does not know one of them
form          0 for two Chinese characters that share a reading or are known to be confused; else 0.5
punctuation   0 for two marks, 0.25 for two that are none, 0.499 for one of each

Without thesaurus, readings and confusions, two unrelated characters cost 4/6 + 0.5 + 0.25 = 1.417, less than a deletion and an insertion. As
ChERRANT's alignment at character level (Zhang et al. 2022, arXiv:2204.10994), whose data files `Substitution.from_files` reads.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from adaptome.core.errors import DataError, MissingExtraError

_CHINESE_MARKS = "！？｡＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘'‛“”„‟…‧﹏"
#: punctuation as ChERRANT knows it: neither the full stop 。 nor 《 is in it
MARKS = frozenset(_CHINESE_MARKS + string.punctuation)


@dataclass(frozen=True)
class Substitution:
    """The cost of a substitution of single characters.

    Args:
        meanings: a character's place in a thesaurus, four letters or more, such as Aa01A01 of the Cilin.
        confusions: characters that a character is taken for.
        readings: a character's readings without tones.
    """

    meanings: Mapping[str, str] = field(default_factory=dict)
    confusions: Mapping[str, frozenset[str]] = field(default_factory=dict)
    readings: bool = False

    @classmethod
    def from_files(
        cls, thesaurus: Path | None = None, confusions: Path | None = None, readings: bool = False
    ) -> Substitution:
        """With ChERRANT's cilin.txt (a code, then words) and confusion_dict.txt (a character, then those it is confused with).

        Args:
            readings: take readings from the package pypinyin.

        Raises:
            DataError: a file that cannot be read; MissingExtraError: pypinyin is not installed.
        """
        meanings: dict[str, str] = {}
        for code, *words in _lines(thesaurus, "gbk"):
            meanings |= dict.fromkeys(words, code)  # the last line that has a word, as there
        confused = {one: frozenset(others) for one, *others in _lines(confusions, "utf-8")}
        if readings:
            _readings("一")
        return cls(meanings, confused, readings)

    def __call__(self, one: str, other: str) -> float:
        return self._meaning(one, other) / 6.0 + self._form(one, other) + _punctuation(one, other)

    def _meaning(self, one: str, other: str) -> int:
        places = [self.meanings.get(character) for character in (one, other)]
        if places[0] is None or places[1] is None:
            return 4
        levels = [(place[0], place[1], place[2:4]) for place in places if place is not None]
        return 2 * sum(a != b for a, b in zip(*levels, strict=True))

    def _form(self, one: str, other: str) -> float:
        if not (_chinese(one) and _chinese(other)):
            return 0.5
        alike = other in self.confusions.get(one, ()) or one in self.confusions.get(other, ())
        if alike or (self.readings and _readings(one) & _readings(other)):
            return 0.0
        return 0.5


def _punctuation(one: str, other: str) -> float:
    marks = (one in MARKS) + (other in MARKS)
    return {0: 0.25, 1: 0.499, 2: 0.0}[marks]


def _chinese(token: str) -> bool:
    return all("\u4e00" <= character <= "\u9fff" for character in token)


@lru_cache(maxsize=65536)
def _readings(character: str) -> frozenset[str]:
    try:
        from pypinyin import Style, pinyin
    except ImportError as error:
        raise MissingExtraError("pypinyin", "chinese") from error
    return frozenset(pinyin(character, style=Style.NORMAL, heteronym=True)[0])


def _lines(path: Path | None, encoding: str) -> list[list[str]]:
    if path is None:
        return []
    try:
        text = path.read_text(encoding=encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text in {encoding}: {error}") from error
    return [line.split(" ") for line in text.strip().split("\n")]
