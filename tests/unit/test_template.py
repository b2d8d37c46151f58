from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from edgesdk.errors import RequestError, TemplateError
from edgesdk.text.template import ChatTemplate

_USER = [{"role": "user", "content": "Hi <b> & 'you'"}]


def _rendered(source: str, **variables: object) -> str:
    return ChatTemplate(source).render(_USER, **variables)  # type: ignore[arg-type]


def test_blocks_leave_no_whitespace_and_text_is_not_escaped() -> None:
    source = (
        "{% for m in messages %}\n  {% if true %}\n{{ m['content'] }}\n  {% endif %}\n{% endfor %}"
    )

    assert _rendered(source) == "Hi <b> & 'you'\n"


def test_tokens_that_a_model_lacks_are_undefined_rather_than_none() -> None:
    assert _rendered("[{{ bos_token }}{{ eos_token }}]", eos_token="</s>") == "[</s>]"


def test_helpers_that_templates_expect_are_there() -> None:
    assert _rendered("{{ {'a': 'é<'} | tojson }}") == '{"a": "é<"}'
    assert _rendered("{{ strftime_now('%Y') }}") in {str(datetime.now().year + d) for d in (0, 1)}
    assert _rendered("{% generation %}x{% endgeneration %}") == "x"
    assert (
        _rendered("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}")
        == "01"
    )
    assert _rendered("{% set n = namespace(x=1) %}{% set n.x = n.x + 1 %}{{ n.x }}") == "2"
    assert _rendered("{{ thinking }}", thinking=True) == "True"


def test_what_the_sandbox_counts_still_means_what_it_meant() -> None:
    source = (
        "{{ 'a' ~ 1 ~ none }}|{{ ['a', 2] | join('-') }}|{{ 'aXa' | replace('a', 'b') }}|"
        "{{ 'aXa'.replace('a', 'b', 1) }}|{{ ', '.join(['x', 'y']) }}|{{ '%s!' % 'x' }}|"
        "{{ '{:>4}'.format(7) }}|{{ 2 ** 10 }}|{{ 'ab' * 2 }}|{{ [1] + [2] }}|"
        "{% for x in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}"
        "{% endfor %}|"
        "{% for x in [1, [2]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}|"
        "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) }}|{{ messages | length }}|"
        "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}|"
        "{% for m in messages if m.role == 'nobody' %}x{% else %}none{% endfor %}"
    )

    assert _rendered(source) == (
        "a1None|a-2|bXb|bXa|x, y|x!|   7|1024|abab|[1, 2]|1/3,2/3,3/3|12|<1>|1|a1|none"
    )


def test_a_template_that_refuses_says_why() -> None:
    with pytest.raises(TemplateError, match="failed: no system messages here"):
        _rendered("{{ raise_exception('no system messages here') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__base__.__subclasses__ }}",
        "{{ self.__init__.__globals__ }}",
        "{% set n = namespace(__class__=1) %}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_that_tries_to_leave_its_sandbox_is_an_error(source: str) -> None:
    with pytest.raises(TemplateError):
        _rendered(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ ('{0.__class__}' | attr('format'))(1) }}",
    ],
)
def test_internals_are_undefined_to_a_template(source: str) -> None:
    assert _rendered(source) == ""


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
        "{% for i in range(99999) %}" + "x" * 99999 + "{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(40) }}",
        "{% macro f() %}" + "x" * 9999 + "{% endmacro %}"
        "{% for i in range(99999) %}{% set y = f() %}{% endfor %}",
        "{% set n = namespace(x='a') %}"
        "{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='a') %}"
        "{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}"
        "{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x='aa') %}{% for i in range(99) %}"
        "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
        "{% set n = namespace(x=2) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ 9 ** 99999999 }}",
        "{{ 'x' * 9999999999 }}",
        "{{ [1] * 9999999999 }}",
        "{{ 'x' | center(9999999999) }}",
        "{{ 'x'.center(9999999999) }}",
        "{{ 'x' | indent(9999999999, true) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (9999999999, 1) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '{:>{w}}'.format(1, w=9999999999) }}",
        "{{ range(99999) | map('string') | join('x' * 99999) }}",
        "{{ ('x' * 99999).join(range(99999) | map('string')) }}",
        "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}",
        "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
        "{% for i in [1] recursive %}{{ loop([i, i]) }}{% endfor %}",
    ],
)
def test_a_template_that_runs_for_ever_or_explodes_is_an_error(source: str) -> None:
    # Without its limits each of these takes hours, or all of the memory.
    with pytest.raises(TemplateError):
        _rendered(source)


def test_a_long_conversation_is_far_from_the_limits() -> None:
    source = (
        "{% for m in messages %}"
        "{{ '<|' + m.role + '|>' + m.content | trim + '<|end|>\\n' }}"
        "{% endfor %}"
    )
    messages = [{"role": "user", "content": "word " * 400}] * 2000

    assert len(ChatTemplate(source).render(messages)) > 4_000_000


@pytest.mark.parametrize("source", ["{% if %}", "{{ (", "{{ x | nofilter }}", "x" * 2**21])
def test_a_template_that_cannot_be_compiled_is_an_error(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source)


def test_messages_may_hold_json_values_only() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": object()}]}

    with pytest.raises(RequestError, match=r"messages\[0\]\.content\[0\]\.text is a object"):
        ChatTemplate("x").render([message])


def test_threads_share_a_template_but_not_its_budget() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{{ i % 10 }}{% endfor %}")

    with ThreadPoolExecutor(4) as pool:
        rendered = list(pool.map(lambda _: template.render([]), range(6)))

    assert {len(text) for text in rendered} == {90000}


def test_a_key_without_a_value_is_left_out_as_in_transformers() -> None:
    source = "{% for m in messages %}[{{ m.content }}{{ 'calls' in m }}]{% endfor %}"
    messages = [{"role": "assistant", "content": None, "calls": None}, *_USER]

    assert ChatTemplate(source).render(messages).startswith("[False][Hi")
