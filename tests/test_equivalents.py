"""What other libraries' types are here: complete, and made of settings that exist on both sides."""

from __future__ import annotations

import dataclasses
import re

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType

import adaptome as ad
from adaptome.equivalents import LIBRARIES, LYCORIS_ALGORITHMS, PEFT, PEFT_TYPES, Equivalent

EVERY = [entry for entries in LIBRARIES.values() for entry in entries]
WORDS = {"not", "and", "if", "else", "True", "False"}


def test_every_type_of_the_installed_peft_is_listed_once():
    # a type that is new there has to be added here: as a method, or with the reason why not
    assert sorted(entry.type for entry in PEFT_TYPES) == sorted(kind.value for kind in PeftType)
    installed = tuple(int(part) for part in peft.__version__.split(".")[:2])
    assert installed >= tuple(int(part) for part in PEFT.split("."))


def test_every_algorithm_of_lycoris_is_listed_once():
    # `network_module_dict` of lycoris-lora 4.1, which is not installed here, and its norms
    known = "boft diag-oft dylora full glora ia3 locon loha lokr lora norms tlora"
    assert sorted(entry.type for entry in LYCORIS_ALGORITHMS) == known.split()


@pytest.mark.parametrize("entry", EVERY, ids=lambda e: e.type)
def test_an_entry_is_a_method_or_a_reason(entry: Equivalent):
    if entry.method is None:
        assert entry.note and not entry.settings
        return
    options = {field.name for field in dataclasses.fields(ad.list_methods()[entry.method])}
    assert set(entry.settings) <= options


@pytest.mark.parametrize("entry", EVERY, ids=lambda e: e.type)
def test_methods_that_a_note_names_exist(entry: Equivalent):
    for word in re.findall(r"`([^`]+)`", entry.note):
        name = word.removeprefix("ad.").partition("(")[0]
        assert name in ad.list_methods() or hasattr(ad, name) or name == "index", word


@pytest.mark.parametrize("entry", PEFT_TYPES, ids=lambda e: e.type)
def test_settings_stand_for_fields_of_pefts_config(entry: Equivalent):
    known = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(entry.type)])}
    for theirs in entry.settings.values():
        words = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"'[^']*'", "", theirs)))
        assert words - WORDS <= known, theirs
