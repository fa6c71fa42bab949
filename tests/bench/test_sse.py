import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.sse import SseParser


def test_events_end_at_an_empty_line_and_comments_are_skipped() -> None:
    parser = SseParser()
    assert parser.feed(b'data: {"a": 1}\n') == []
    assert parser.feed(b"\n: ping\n\nevent: x\ndata: two\ndata:lines\n\ndata: [DO") == [
        '{"a": 1}',
        "two\nlines",
    ]
    assert parser.feed(b"NE]\r\n\r\n") == ["[DONE]"]


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=8), st.lists(st.integers(0, 400), max_size=12))
def test_any_cut_of_the_stream_gives_the_same_events(texts: list[str], cuts: list[int]) -> None:
    wanted = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    stream = "".join(f"data: {payload}\n\n" for payload in wanted).encode()
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    parser = SseParser()
    got = [payload for a, b in pairwise(edges) for payload in parser.feed(stream[a:b])]
    assert got == wanted
