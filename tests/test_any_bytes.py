"""Whatever bytes a file or an option holds: a value, or one line that says what is wrong."""

from __future__ import annotations

import json

import pytest
from any_bytes import TARGETS
from hypothesis import given, settings
from hypothesis import strategies as st

#: Each was a traceback once.
FOUND = [
    ("svamp_records", b"{}"),
    ("claims", b"\xff"),
    ("claims", b"[" * 5_000),
    ("claims", b"claims:"),
    ("tables", b"c\nschema_version,run_id,step,metric,value\n1,a,99999999999999999999,reward,1\n"),
    ("tables", b"c\nschema_version,run_id,step,metric,value,value\n1,a,1,reward,1,1\n"),
]
ANY = st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass"))
TEXTS = {
    "svamp_records": st.recursive(
        st.none() | st.floats() | st.text(), lambda part: st.lists(part) | st.dictionaries(st.text(), part)
    ).map(lambda value: json.dumps(value).encode()),
    "claims": st.text(alphabet="claims: []{}-!&*?|>'\"%@`\n0123456789", max_size=200).map(str.encode),
    "config": st.tuples(st.sampled_from(["steps", "model", "seed", "lora_targets", "eps", "task"]), st.text(max_size=40)).map(
        lambda pair: "=".join(pair).encode("utf-8", "surrogatepass")
    ),
    "tables": st.lists(st.text(alphabet='0123456789.,-e"naif_ x', max_size=30), max_size=5).map(
        lambda rows: ("c\nschema_version,run_id,step,metric,value\n" + "".join(f"1,{row}\n" for row in rows)).encode()
    ),
}


@pytest.mark.parametrize(("target", "data"), FOUND)
def test_what_once_broke_a_promise_keeps_it(target, data):
    TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_any_bytes_keep_the_promise(target):
    @settings(max_examples=100, deadline=None)
    @given(ANY | TEXTS.get(target, ANY))
    def check(data: bytes) -> None:
        TARGETS[target](data)

    check()
