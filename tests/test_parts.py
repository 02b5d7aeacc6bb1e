"""Text -> parts: as words or as it stands, pauses between them, the same in pieces."""

import pytest

from qwen3_jax.text.parts import Part, Parts, parts_of, whole

MARKED = '<speak>Hello <break time="500ms"/> world, it costs **$12**. <break strength="strong"/></speak>'


def test_pauses_stand_before_parts() -> None:
    assert list(parts_of(MARKED, "english", normalize=True)) == [Part("Hello", 0.0), Part("world, it costs twelve dollars.", 0.5)]
    assert list(parts_of(MARKED, "english", normalize=False)) == [Part(MARKED, 0.0)]
    assert whole(MARKED, normalize=True) == "Hello world, it costs twelve dollars."


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("size", [1, 3, 50])
def test_pieces_make_the_parts_of_the_whole(normalize: bool, size: int) -> None:
    text = " ".join([MARKED, "A long sentence that goes on and on, as it were, for quite a while. It has e\u0301 in it, and 3 cats."] * 3)
    parts = Parts("english", normalize=normalize)
    found = [part for start in range(0, len(text), size) for part in parts.feed(text[start : start + size])]
    assert found + parts.finish() == list(parts_of(text, "english", normalize=normalize))


@pytest.mark.parametrize("text", ["...", "<b></b>", "\U0001f600"])
def test_nothing_to_say_is_refused_where_texts_are_read_as_words(text: str) -> None:
    with pytest.raises(ValueError, match="nothing to say"):
        list(parts_of(text, "english", normalize=True))
    assert list(parts_of(text, "english", normalize=False)) == [Part(text, 0.0)]
