from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edgesdk.generation.stopping import StopFilter

_TEXT = st.text(alphabet="abc", max_size=30)
_STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3).map(tuple)


def _stream(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool, list[str]]:
    """All that is shown, whether it stopped, and what was shown after each piece."""
    waiting, shown = StopFilter(stops), []
    for piece in pieces:
        shown.append(waiting.feed(piece))
        if waiting.stopped:
            return "".join(shown), True, shown
    return "".join(shown) + waiting.flush(), False, shown


def _cut_at_first_complete(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The same by definition: take characters until some stop text stands at the end."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - len(max(ending, key=len))], True
    return text, False


@given(text=_TEXT, stops=_STOPS, cuts=st.lists(st.integers(0, 30)))
def test_any_cutting_into_pieces_ends_where_the_first_stop_text_completes(
    text: str, stops: tuple[str, ...], cuts: list[int]
) -> None:
    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(borders)]

    shown, stopped, _ = _stream(stops, pieces)

    assert (shown, stopped) == _cut_at_first_complete(text, stops)


def test_nothing_of_a_stop_text_shows_while_it_arrives() -> None:
    shown, stopped, steps = _stream(("</end>",), ["Hi <", "/e", "nd", "> more"])

    assert steps == ["Hi ", "", "", ""]
    assert (shown, stopped) == ("Hi ", True)


def test_text_that_only_looked_like_a_stop_text_comes_out_whole() -> None:
    shown, stopped, steps = _stream(("</end>",), ["a <", "/e", "xx"])

    assert steps == ["a ", "", "</exx"]
    assert (shown, stopped) == ("a </exx", False)


def test_text_comes_at_once_where_no_stop_text_can_start() -> None:
    assert _stream(("zz",), ["abc", "def"])[2] == ["abc", "def"]


def test_the_stop_text_that_ended_an_answer_is_named() -> None:
    stops = StopFilter(("zzz", " there"))
    assert stops.feed("Hello t") == "Hello"
    assert stops.stop_text is None
    assert stops.feed("here.") == ""
    assert stops.stop_text == " there"


def test_no_stop_text_counts_in_a_call() -> None:
    stops = StopFilter(("Lima", "<t"), is_call=lambda text: "<call>" in text)
    # What was held back as the beginning of a stop text comes out with the call.
    pieces = [stops.feed(piece) for piece in ("I look <", "call>", '{"city": "Lima"}')]
    assert pieces == ["I look ", "<call>", '{"city": "Lima"}']
    assert not stops.stopped
