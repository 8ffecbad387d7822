"""A sample that hangs, crashes or eats memory costs itself alone; the others come out in order."""

from __future__ import annotations

import pytest

from pipeline.ingest import guard as guarding
from pipeline.ingest.guard import Guard
from pipeline.ingest.members import Member
from schemas.run import ImageIngest
from schemas.samples import Code
from tests.ingest.tools import encoded, picture

TROUBLE = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from pipeline.ingest import guard_child
served = 0
def decode(job, files, ingest):
    global served
    served += 1
    what = files[job["main"]].decode()
    if what == "hang": time.sleep(60)
    if what == "crash": os.abort()
    if what == "exit": os._exit(3)
    if what == "killed": os.kill(os.getpid(), 9)
    if what == "memory": b"x" * (2 * ingest.memory_bytes)
    if what == "tired" and served > 1: os._exit(1)
    if what == "bug": raise KeyError("oops")
    print("noise on standard output")
    return {"pixels": what.encode() * 1000, "height": served}
guard_child.decoder = lambda kind: decode
guard_child.main()
"""


@pytest.fixture
def troubled(monkeypatch):
    """A guard whose decoder does what a sample's bytes say."""
    monkeypatch.setattr(guarding, "BOOT", TROUBLE)
    made = Guard("images", ImageIngest(timeout_s=1.0, memory_bytes=256 * 2**20))
    yield made
    made.close()


def run(guard: Guard, words: list[str]) -> list[tuple[str, str]]:
    members = (Member(str(i), {"f": w.encode()}, "f") for i, w in enumerate(words))
    found = list(guard.run(members, lambda member: member.sample_id))
    assert [member.sample_id for member, _ in found] == [str(i) for i in range(len(words))]
    for word, (_, decoded) in zip(words, found):
        if decoded.columns is not None:
            assert decoded.columns["pixels"] == word.encode() * 1000
    return [(word, decoded.code) for word, (_, decoded) in zip(words, found)]


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("hang", Code.PARSER_TIMEOUT),
        ("crash", Code.PARSER_CRASH),
        ("exit", Code.PARSER_CRASH),
        ("killed", Code.PARSER_MEMORY),
        ("memory", Code.PARSER_MEMORY),
        ("bug", Code.DECODE),
    ],
)
def test_only_the_culprit_is_rejected(troubled, word, code):
    words = ["a", "b", word, "c", "d", *"efghijklmnopqrstuvwxyz", word]
    want = [(w, code.value if w == word else "") for w in words]
    assert run(troubled, words) == want


def test_a_sample_is_judged_in_a_fresh_child(troubled):
    assert run(troubled, ["a", "tired", "b"]) == [("a", ""), ("tired", ""), ("b", "")]


def test_the_child_is_used_again_and_counts_its_decodes(troubled):
    members = [Member(str(i), {"f": b"x"}, "f") for i in range(5)]
    for start in (0, 5):
        found = list(troubled.run(iter(members), lambda member: ""))
        assert [d.columns["height"] for _, d in found] == [start + i + 1 for i in range(5)]
    assert troubled.decodes == 10


def test_what_is_not_to_be_decoded_keeps_its_place(troubled):
    members = [
        Member("0", {"f": b"x"}, "f"),
        Member("1", problem=(Code.INPUT_MISSING, "gone")),
        Member("2", {"f": b""}, "f"),
        Member("3", ignored="of another kind"),
        Member("4", {"f": b"y"}, "f"),
    ]
    found = [(m.sample_id, d.code) for m, d in troubled.run(iter(members), lambda m: "")]
    assert found == [("0", ""), ("1", "INPUT_MISSING"), ("2", "EMPTY"), ("3", ""), ("4", "")]
    assert troubled.decodes == 2


def test_leaving_early_leaves_no_answers_behind(troubled):
    members = (Member(str(i), {"f": b"x"}, "f") for i in range(10))
    stream = troubled.run(members, lambda member: "")
    next(stream)
    stream.close()
    assert run(troubled, ["a", "b"]) == [("a", ""), ("b", "")]


def test_large_samples_pass_both_ways():
    pixels = picture(1, 1500, 1500)
    data = encoded(pixels, "BMP")
    guard = Guard("images", ImageIngest(held_out=0))
    try:
        members = (Member(str(i), {"f.bmp": data}, "f.bmp") for i in range(6))
        for _, decoded in guard.run(members, lambda member: member.sample_id):
            assert decoded.columns["pixels"] == pixels.tobytes()
    finally:
        guard.close()


def test_a_child_that_cannot_start_says_why(monkeypatch):
    monkeypatch.setattr(guarding, "BOOT", "raise SystemExit('no such module')")
    with pytest.raises(RuntimeError, match=r"does not start: .*no such module"):
        run(Guard("images", ImageIngest()), ["a"])
