"""Text of strangers becomes plain values or a ValueError, and names and numbers what an array and a system hold."""

from __future__ import annotations

import json

import pytest

from selfdet.data.untrusted import expanded, is_name, is_side, parse_json, parse_xml, parse_yaml, to_float
from selfdet.errors import UserError, one_line, shown


def test_json_of_any_unicode_encoding_is_read() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert parse_json(json.dumps({"a": "é"}, ensure_ascii=False).encode(encoding)) == {"a": "é"}


def test_yaml_is_plain_values() -> None:
    assert parse_yaml(b"\xef\xbb\xbfa: [1, 0x10, 2.5, yes, null]\nb: {c: d}\n") == {
        "a": [1, 16, 2.5, True, None],
        "b": {"c": "d"},
    }


def test_xml_without_a_document_type_is_read() -> None:
    assert parse_xml("<?xml version='1.0'?><a><b>é</b></a>".encode()).findtext("b") == "é"


@pytest.mark.parametrize("text", ["a: &x 1\nb: *x\n", "{a: 1, a: 2}", "!!python/name:os.system", "2020-99-99", "\t"])
def test_yaml_that_does_more_than_name_values_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_yaml(text.encode())
    assert str(refused.value).isprintable()


def test_numbers_are_floats_or_none() -> None:
    assert [to_float(value) for value in (1, 2.5, 10**400, -(10**400), True, "1", None)] == [
        *(1.0, 2.5, float("inf"), float("-inf")),
        *(None, None, None),
    ]
    assert [is_side(value) for value in (1, 640.0, 0, -3, 10**7, 1.5, float("nan"), "9")] == [True, True, *[False] * 6]


def test_names_that_no_file_can_have_are_known() -> None:
    assert [is_name(name) for name in ("a", "a\nb", "\udcff", "a\0", "\ud800")] == [True, True, True, False, False]


def test_the_folder_of_nobody_is_taken_as_it_is() -> None:
    assert str(expanded("~nobody-of-this-name/x")) == "~nobody-of-this-name/x"
    assert str(expanded("~a\0/x")) == "~a\0/x"


def test_messages_are_one_short_line_without_codes() -> None:
    line = str(UserError(f"a\nb\x1b[31m\u202e{'x' * 10_000}\udcff", "do\tthis"))
    assert line.isprintable()
    assert line.startswith("a b\\x1b[31m\\u202e")
    assert line.endswith("\\udcff. Do this")
    assert len(line) < 2000
    assert one_line("plain – words…") == "plain – words…"


def test_any_value_can_be_shown() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a list"
    assert shown(1 << 100_000) == "a int"
    assert len(shown("x" * 10**6)) < 100
