"""Chinese sentences of made-up papers with errors of grammar, discipline after discipline.

    made:corrections        columns source, references, category: five disciplines, each with an error that its writers make
    made:corrections-base   the same columns: right sentences of daily life, for a base that copies

A discipline's writers err in one way, and a part of their sentences is right. What one discipline corrects stands rightly in another: a
contract that is counted in 张 should be counted in 份, and a picture the other way round. So a model that learns one after another forgets.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adaptome.data.makers import maker
from adaptome.data.splits import Table

#: a right sentence and one with an error
Pair = tuple[str, str]
NUMBERS = "一二三四五六七八九"
WHEN = "昨天 今天 去年 今年 上月 最近 当时 后来".split()


@dataclass(frozen=True)
class Discipline:
    """Who, what and how its papers speak of, and the error that they have."""

    name: str
    people: list[str]
    things: list[str]
    deeds: list[str]
    error: Callable[[random.Random, str, str, str, str, str], Pair]


def _counted(right: str, wrong: str) -> Callable[[random.Random, str, str, str, str, str], Pair]:
    """A wrong measure word."""

    def made(draw: random.Random, when: str, who: str, deed: str, number: str, thing: str) -> Pair:
        ahead, behind = f"{who}{when}{deed}了{number}", f"{thing}。"
        return f"{ahead}{right}{behind}", f"{ahead}{wrong}{behind}"

    return made


def _about(draw: random.Random, when: str, who: str, deed: str, number: str, thing: str) -> Pair:
    """大约 and 左右 say the same."""
    ahead, behind = f"{when}{who}{deed}的{thing}大约有{number}成", "。"
    return f"{ahead}{behind}", f"{ahead}左右{behind}"


def _order(draw: random.Random, when: str, who: str, deed: str, number: str, thing: str) -> Pair:
    """都 stands before what all do."""
    ahead = f"{when}{number}个{who}"
    return f"{ahead}都{deed}了{thing}。", f"{ahead}{deed}了都{thing}。"


def _of(draw: random.Random, when: str, who: str, deed: str, number: str, thing: str) -> Pair:
    """的 is missing."""
    ahead, behind = f"{who}{when}看见{number}次{deed}", f"{thing}。"
    return f"{ahead}的{behind}", f"{ahead}{behind}"


DISCIPLINES = (
    Discipline("法学", "法官 律师 证人 原告".split(), "合同 判决 证词 文书".split(), "签署 审查 提交 修改".split(), _counted("份", "张")),
    Discipline("经济学", "银行 企业 工厂 商店".split(), "利润 资金 货物 税款".split(), "支付 收取 减少 增加".split(), _about),
    Discipline("历史学", "学者 使者 将军 皇帝".split(), "古城 碑文 边境 都城".split(), "研究 访问 记录 保卫".split(), _order),
    Discipline("农学", "农民 专家 村民 技师".split(), "小麦 土壤 果树 水稻".split(), "播种 浇灌 收割 施肥".split(), _of),
    Discipline("艺术学", "画家 馆长 学生 导师".split(), "油画 草图 照片 海报".split(), "创作 展出 临摹 收藏".split(), _counted("张", "份")),
)  # fmt: skip
DAILY = (
    Discipline("生活", "妈妈 老师 邻居 司机".split(), "衣服 雨伞 钥匙 面包".split(), "买来 带走 借用 找到".split(), _counted("件", "条")),
    Discipline("旅行", "游客 导游 船长 厨师".split(), "车票 地图 行李 小吃".split(), "准备 品尝 丢失 寻找".split(), _about),
    Discipline("学校", "校长 同学 班长 家长".split(), "课本 作业 试卷 黑板".split(), "检查 打扫 整理 讨论".split(), _order),
    Discipline("医院", "医生 护士 病人 药师".split(), "药片 病历 床单 针管".split(), "更换 清洗 称量 登记".split(), _of),
)  # fmt: skip


@maker("corrections")
def corrections(seed: int) -> dict[str, Table]:
    """300 train and 40 test sentences of each of five disciplines; three of ten are right."""
    return _tables("corrections", seed, DISCIPLINES, 300, 40, 0.3)


@maker("corrections-base")
def corrections_base(seed: int) -> dict[str, Table]:
    """1,500 train and 40 test sentences of each of four parts of daily life, some with words of the disciplines; all are right."""
    return _tables("corrections-base", seed, DAILY, 1500, 40, 1.0, DISCIPLINES)


def _tables(
    name: str,
    seed: int,
    groups: tuple[Discipline, ...],
    train: int,
    test: int,
    right: float,
    words_of: tuple[Discipline, ...] = (),
) -> dict[str, Table]:
    made = {}
    for split, each in (("train", train), ("test", test)):
        draw = random.Random(f"{name} {seed} {split}")
        rows = [
            (*_pair(draw, one, draw.choice((*words_of, one)), right), one.name)
            for one in groups
            for _ in range(each)
        ]
        draw.shuffle(rows)
        columns: dict[str, list[Any]] = {
            "source": [row[0] for row in rows],
            "references": [[row[1]] for row in rows],
            "category": [row[2] for row in rows],
        }
        made[split] = Table(f"made:{name}", columns, range(len(rows)), "row")
    return made


def _pair(draw: random.Random, one: Discipline, words: Discipline, right: float) -> tuple[str, str]:
    """A sentence as it is written, and as it should be: `one` says how it is built, `words` what it speaks of."""
    parts = [draw.choice(of) for of in (WHEN, words.people, words.deeds, NUMBERS, words.things)]
    correct, wrong = one.error(draw, *parts)
    return (correct if draw.random() < right else wrong), correct
