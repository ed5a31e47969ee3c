"""The prompt grammar against the examples of the web page that it comes from, and against any text at all."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.backends.sd.prompt_grammar import (
    MAX_DEPTH,
    LoraTag,
    Prompt,
    Span,
    attention,
    parse,
)
from vitrail.errors import InputError


def texts(prompt: str, steps: int = 10) -> list[str]:
    (part,) = parse(prompt).subprompts
    return [part.text_at(step, steps) for step in range(steps)]


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        # the examples in the web page's own parser
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
        # and what they do not show
        ("", []),
        ("closed) again", [("closed) again", 1.0)]),
        ("[less]", [("less", 1 / 1.1)]),
        ("[[less]]", [("less", 1 / 1.1 * (1 / 1.1))]),
        ("(cat:0)", [("cat", 0.0)]),
        ("(cat:-0.5)", [("cat", -0.5)]),
        ("(cat: 1.3 )", [("cat", 1.3)]),
        ("(cat:1.2.3)", [("cat:1.2.3)", 1.1)]),
        ("a clock at 12:30", [("a clock at 12:30", 1.0)]),
        (r"C:\\art \: a\|b", [(r"C:\art : a|b", 1.0)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.1 * (1 / 1.1)), (" c", 1 / 1.1)]),
    ],
)
def test_attention(text: str, spans: list[tuple[str, float]]) -> None:
    assert attention(text) == (tuple(Span(*span) for span in spans),)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # the examples in the web page's own parser, ten steps: (steps, text)
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (7, "a b")]),
        ("a [b: 3]", [(3, "a "), (7, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (8, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (7, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (9, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (1, "ace"), (8, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (5, "a b c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (7, "((a][:b:c d")]),
        ("[a|(b:1.1)]", [(1, "a"), (1, "(b:1.1)")] * 5),
        ("[fe|]male", [(1, "female"), (1, "male")] * 5),
        ("[fe|||]male", [(1, "female"), (3, "male"), (1, "female"), (3, "male"), (1, "female"), (1, "male")]),
        # and what they do not show
        ("[a::0.25]b", [(2, "ab"), (8, "b")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:1]", [(1, "a"), (9, "b")]),
        ("[a:b:99]", [(10, "a")]),
        ("[a:b:-3]", [(10, "b")]),
        ("[a:b:1e400]", [(10, "a")]),
        ("(x:1.2) [a:b:0.5]", [(5, "(x:1.2) a"), (5, "(x:1.2) b")]),
        ("([a:b:0.5]:1.3)", [(5, "(a:1.3)"), (5, "(b:1.3)")]),
        ("[a:b:c:0.5]", [(10, "[a:b:c:0.5]")]),
        ("[a:b]", [(10, "[a:b]")]),
        ("[a:b c]", [(10, "[a:b c]")]),
        (r"\[a:b:0.5\]", [(10, r"\[a:b:0.5\]")]),
        (r"[a\:b:c:0.5]", [(5, r"a\:b"), (5, "c")]),
        ("one | two [a:b:0.5]", [(5, "one | two a"), (5, "one | two b")]),
        ("[a|b:0.5]", [(10, "[a|b:0.5]")]),
        ("[a|[b|c]]", [(1, "a"), (1, "c")] * 5),
        (
            "[[a:b:5]|x]",
            [(1, "a"), (1, "x"), (1, "a"), (1, "x"), (1, "a")] + [(1, "x"), (1, "b")] * 2 + [(1, "x")],
        ),
    ],
)
def test_schedules(prompt: str, expected: list[tuple[int, str]]) -> None:
    assert texts(prompt) == [text for count, text in expected for _ in range(count)]
    assert parse(prompt).fixed == (len(set(texts(prompt))) == 1 and expected[0][1] == prompt)


def test_a_schedule_is_read_as_attention_afterwards() -> None:
    (part,) = parse("(a [cat:dog:0.5]:1.2)").subprompts
    assert part.schedule(4) == [((Span("a cat", 1.2),),)] * 2 + [((Span("a dog", 1.2),),)] * 2
    assert len(set(part.schedule(4))) == 2


def test_break_begins_a_group() -> None:
    assert attention("a BREAK b") == ((Span("a", 1.0),), (Span("b", 1.0),))
    assert attention("(a BREAK b:1.2) c") == ((Span("a", 1.2),), (Span("b", 1.2), Span(" c", 1.0)))
    assert attention("BREAK a BREAK\n\nBREAK") == ((), (Span("a", 1.0),), (), ())
    assert attention("BREAKFAST") == ((Span("BREAKFAST", 1.0),),)


def test_and_with_weights() -> None:
    parts = parse("a cat :1.2 AND a dog AND a penguin:-2").subprompts
    assert [(part.text_at(0, 1), part.weight) for part in parts] == [
        ("a cat ", 1.2),
        (" a dog ", 1.0),
        (" a penguin", -2.0),
    ]
    assert [part.weight for part in parse("(cat:1.3) AND dog").subprompts] == [1.0, 1.0]
    assert len(parse("a SAND castle ANDes").subprompts) == 1
    assert len(parse("a AND b", compose=False).subprompts) == 1
    assert parse("the time is 12:30").subprompts[0].weight == 1.0


def test_lora_tags_are_taken_out() -> None:
    prompt = parse("a cat <lora:ink wash:0.8>, (big<lora:x>) <lyco:y:0.5:0.25> <hypernet:h:1> <b>")
    assert prompt.loras == (LoraTag("ink wash", 0.8, 0.8), LoraTag("x", 1.0, 1.0), LoraTag("y", 0.5, 0.25))
    assert prompt.hypernetworks == ("h",)
    assert texts("a cat <lora:ink wash:0.8>, (big<lora:x>) <b>") == ["a cat , (big) <b>"] * 10
    assert parse("<lora:a:te=0:unet=-1>").loras == (LoraTag("a", 0.0, -1.0),)
    assert parse("<lora:a:0.5:unet=1>").loras == (LoraTag("a", 0.5, 1.0),)
    assert parse("<lora:open and <3").loras == ()


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("<lora:x:much>", "much"),
        ("<lora:x:nan>", "nan"),
        ("<lora:x:1:2:3>", "3"),
        ("<lora:x:lbw=OUTALL>", "lbw"),
        ("<lora: :1>", "names no LoRA"),
        ("(year:2000)", "2000"),
        ("a :1000 AND b", "1000"),
        ("[a:(b:101):0.5]", "101"),
        ("((a:50):50)", "2500"),
        ("(" * (MAX_DEPTH + 1), "brackets"),
        ("[" * 5000 + "a" + "]" * 5000, "brackets"),
    ],
)
def test_refused(prompt: str, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        parse(prompt)
    assert "\n" not in str(caught.value)


_GRAMMATICAL = st.lists(
    st.sampled_from(
        [*"()[]:|\\<>", "a", " ", "BREAK", "AND", "0.5", "3", "<lora:", ":1.2)", "\n", "Ａ", "\u0663"]
    ),
    max_size=60,
).map("".join)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=80), _GRAMMATICAL), st.integers(1, 12))
def test_any_text_is_read_or_refused(text: str, steps: int) -> None:
    try:
        prompt = parse(text)
        variants = [part.schedule(steps) for part in prompt.subprompts]
    except InputError:
        return
    assert isinstance(prompt, Prompt)
    assert prompt.subprompts
    for part, schedule in zip(prompt.subprompts, variants, strict=True):
        assert len(schedule) == steps
        assert not part.fixed or len(set(schedule)) == 1
        for variant in schedule:
            assert all(abs(span.weight) <= 100 and span.text for group in variant for span in group)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="\\()[]:|<"), max_size=60))
def test_text_without_marks_is_itself(text: str) -> None:
    """Escaping any text gives the text back."""
    if "BREAK" in text or "AND" in text:
        return
    assert parse(text).subprompts[0].at(0, 1) == ((Span(text, 1.0),) if text else (),)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab()[]\\", max_size=40))
def test_escaped_text_is_itself(text: str) -> None:
    escaped = "".join("\\" + c if c in "()[]\\" else c for c in text)
    assert attention(escaped) == ((Span(text, 1.0),) if text else (),)


@pytest.mark.parametrize(
    "unit",
    [
        "(a)",
        "[a|b]",
        "[a:b:0.5]",
        ":",
        " ",
        "<lora:",
        "<lora:a:1>",
        ": ",
        "(a:1.1)",
        "\\",
        "BREAK ",
        "a AND ",
        "|",
        "):",
    ],
)
def test_time_is_linear(unit: str) -> None:
    """A hundred thousand characters of any mark are read at once; a square would take minutes."""
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    for part in parse(text).subprompts:
        part.at(1, 3)
    assert time.process_time() - start < 5


def test_no_torch() -> None:
    code = "import sys, vitrail.backends.sd.prompt_grammar; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
