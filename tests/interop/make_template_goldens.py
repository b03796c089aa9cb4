#!/usr/bin/env python3
"""Makes idioms.json of crates/text/tests/fixtures/chat: what transformers' environment makes of idioms.

A case is a template and the variables that it is given beside the usual ones. What it gives is the
text, `refused` with the words of raise_exception, or `failed`. The clock stands still.

    make_template_goldens.py            writes the file
    make_template_goldens.py --check    holds the installed transformers against the committed file
"""

import argparse
import datetime
import json
import platform
import sys
from pathlib import Path

import jinja2
import transformers
from transformers.utils import chat_template_utils

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "crates/text/tests/fixtures/chat/idioms.json"
NOW = datetime.datetime(2024, 7, 26, 13, 5, 9)

VARIABLES = {
    "s": "Hello, World",
    "p": "  padded\t\n",
    "u": "na\u00efve \u2014 \u65e5\u672c \U0001f999",
    "n": 7,
    "f": 2.5,
    "no": None,
    "yes": True,
    "xs": [3, 1, 2],
    "words": ["pear", "Apple", "fig", "apple"],
    "d": {"b": 1, "a": [1, 2.0, None], "items": "shadow", "c": {"x": "y'z"}},
    "people": [
        {"name": "Ana", "age": 31, "city": "Oslo", "tags": ["x"]},
        {"name": "bob", "age": 25, "city": "rome"},
        {"name": "Cy", "age": 31, "city": "Rome", "tags": []},
    ],
    "tree": [{"v": 1, "kids": [{"v": 2, "kids": []}, {"v": 3, "kids": [{"v": 4, "kids": []}]}]}],
    "long": "The quick brown fox jumps over the lazy dog. A well-known state-of-the-art sentence.",
    "html": "<p>Tom &amp; <b>Jerry</b>'s   \"show\"</p><!-- no -->",
}

# One template a line where it fits; a blank line begins another kind.
LINES = r"""
{{ s.upper() }} {{ s.lower() }} {{ s.title() }} {{ s.swapcase() }} {{ s.capitalize() }}
{{ 'they\'re bill\'s 3rd'.title() }} {{ "o'neil x2y"|title }} {{ 'a-b (c) [d] <e> {f}'|title }}
{{ p.strip() }}|{{ p.lstrip() }}|{{ p.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abcab'.lstrip('ab') }}
{{ s.split() }} {{ s.split(',') }} {{ 'a,b,,c'.split(',', 2) }} {{ ' a  b '.split(' ') }} {{ ''.split() }} {{ ''.split(',') }}
{{ 'a b c'.rsplit(' ', 1) }} {{ ' a  b c '.rsplit(None, 1) }} {{ ' a b  c '.split(None, 1) }} {{ 'a b'.split(maxsplit=1) }}
{{ 'a\nb\r\nc\x0bd'.splitlines() }} {{ 'a\nb\n'.splitlines(True) }} {{ 'a\nb\n'.splitlines(keepends=True) }}
{{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('x') }} {{ 'abc'.rpartition('x') }}
{{ s.find('o') }} {{ s.rfind('o') }} {{ s.find('z') }} {{ s.index('W') }} {{ s.find('o', 5) }} {{ s.find('', 99) }} {{ s.count('l') }} {{ 'aaa'.count('') }}
{{ s.index('zz') }}
{{ s.startswith('He') }} {{ s.endswith(('x', 'ld')) }} {{ s.startswith('W', 7) }} {{ s.startswith(()) }}
{{ s.replace('l', 'L') }} {{ s.replace('l', 'L', 1) }} {{ 'ab'.replace('', '-') }} {{ 'aXbX'|replace('X', '', 1) }}
{{ 'x'.center(5, '*') }}|{{ 'xy'.center(5) }}|{{ 'x'.ljust(3) }}|{{ 'x'.rjust(3, '0') }}|{{ '-7'.zfill(4) }}|{{ 'ab'.zfill(1) }}
{{ 'a\tbc\td'.expandtabs(4) }}|{{ 'a\tb'.expandtabs() }}
{{ 'foobar'.removeprefix('foo') }} {{ 'foobar'.removesuffix('bar') }} {{ 'foo'.removeprefix('x') }}
{{ '12'.isdigit() }} {{ 'a1'.isalnum() }} {{ 'ab'.isalpha() }} {{ ' \t'.isspace() }} {{ 'Ab C'.istitle() }} {{ 'AB1'.isupper() }} {{ '1'.islower() }} {{ '\u00b2'.isdigit() }} {{ '\u00b2'.isdecimal() }} {{ '\u00bd'.isnumeric() }} {{ ''.isalpha() }} {{ 'a_1'.isidentifier() }}
{{ ', '.join(['a', 'b']) }} {{ '-'.join('abc') }} {{ ''.join([]) }} {{ '+'.join(d) }}
{{ ','.join([1, 2]) }}
{{ 'STRASSE'.casefold() }} {{ '\u00df'.upper() }} {{ '\u00df'.capitalize() }} {{ '\u03a3\u03a3'.lower() }}
{{ s.nothing }}|{{ s.nothing is defined }}|{{ s['upper']() }}
{{ s.nothing() }}
{{ 'abc'.encode is defined }} {{ 'a' 'b' "c" }}
{{ u.upper() }} {{ u|length }} {{ u[-1] }} {{ u[::-1] }}

{{ s[0] }} {{ s[-1] }} {{ s[1:4] }} {{ s[:-1] }} {{ s[::2] }} {{ s[::-1] }} {{ s[7:] }} {{ s[5:2] }} {{ s[100:] }}
{{ s[100] }}|{{ s[100] is defined }}|{{ xs[5] }}|{{ xs[-9] is defined }}
{{ xs[1:] }} {{ xs[:-1] }} {{ xs[::-1] }} {{ xs[-2:] }} {{ (1, 2, 3)[1:] }} {{ range(10)[2:8:3] }} {{ range(10)[::-1] }} {{ xs[none:1] }}
{{ xs[::0] }}
{{ xs['a'] }}|{{ xs[1.0] }}|{{ xs[true] }}|{{ d['zz'] }}|{{ no['x'] }}|{{ n.x }}|{{ no.x is defined }}
{{ d[1:2] }}
{{ nothing[1:2] }}

{{ xs }} {{ (1,) }} {{ () }} {{ (1, 'a', none) }} {{ [] }} {{ {} }} {{ {'a': (1, 2), 3: [true]} }}
{{ d }} {{ people[0] }}
{{ ["it's", 'say "hi"', 'b\\s', 'a\nb', '\x07\x7f', "both ' and \"", u] }}
{{ ['\u200b', '\xa0', '\xad', '\u2028', '\ue000', '\u0301', 'e\u0301', '\U0001f600'] }}
{{ none }} {{ true }} {{ false }} {{ True }} {{ None }} {{ [none, true] }} {{ nothing }}|{{ [nothing] }}
{{ 1.0 }} {{ 1e20 }} {{ 1e16 }} {{ 123456789012345680.0 }} {{ 1e-5 }} {{ 0.1 + 0.2 }} {{ 1/3 }} {{ 100.0 }} {{ 1.5e300 * 1e10 }} {{ -0.0 }} {{ [2.50] }}
{{ 'a' ~ 1 ~ 2.0 ~ none ~ true ~ [1, 'x'] ~ nothing ~ (1,) }} {{ 1 ~ 2 }} {{ 2.0 ~ '' }}
{{ 1_000 }} {{ 0x1F }} {{ 0b101 }} {{ 0o17 }} {{ 1_0.5e1 }} {{ 00 }}
{{ range(3) }} {{ range(1, 5) }} {{ range(0, 10, 3) }} {{ range(5)|list }} {{ range(5, 0, -2)|list }} {{ range(3)|length }} {{ range(0) }}
{{ range(3) == range(3) }} {{ 2 in range(3) }} {{ 2.0 in range(3) }} {{ 5 in range(0, 10, 2) }} {{ range(4)[-1] }} {{ range(3).stop }} {{ range(9).index(4) }} {{ range(9).count(4) }}
{{ range(100001) }}
{{ range(0, 5, 0) }}
{{ range(2.0) }}
{{ range(10**20) }}

{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 // -2 }} {{ 7.5 // 2 }} {{ -7.5 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ -7.5 % 2 }} {{ 7.5 % -2 }} {{ 0 // 5 }} {{ -1 // 3 }} {{ 5 % 5.0 }}
{{ 2 ** 10 }} {{ 2 ** -1 }} {{ (-2) ** 3 }} {{ -2 ** 2 }} {{ 2 ** 3 ** 2 }} {{ 2.0 ** 0.5 }} {{ 0 ** 0 }} {{ 1 ** 999999 }} {{ (-1) ** 7 }} {{ 2 ** 100 }}
{{ 6 / 3 }} {{ 7 / 2 }} {{ 1 + 1.0 }} {{ 3 - 5 }} {{ 2 * 3.5 }} {{ true + true }} {{ -true }} {{ +3 }} {{ --3 }} {{ - n }} {{ 9 - 4 - 3 }} {{ 2 * 3 % 4 }}
{{ 1 / 0 }}
{{ 1 % 0 }}
{{ 1.0 // 0 }}
{{ 'a' * 3 }} {{ 3 * 'ab' }} {{ 'a' * -1 }}| {{ [0] * 3 }} {{ 2 * (1, 2) }} {{ 'a' + 'b' }} {{ [1] + [2] }} {{ (1,) + (2,) }} {{ 'x' * true }}
{{ 'a' + 1 }}
{{ [1] + (2,) }}
{{ 'a' * 2.0 }}
{{ none + 1 }}
{{ 'a' - 'b' }}
{{ -'a' }}
{{ 'b' ~ 2 + 3 }}
{{ 1 ~ 2 * 3 }} {{ 'a' ~ 'b' * 2 }} {{ 1 + 2 ~ 3 }}

{{ '%s' % 'x' }} {{ '%s and %s' % ('x', 2) }} {{ '%d%%' % 50 }} {{ '%5d|%-5d|%05d|%+d|% d' % (42, 42, 42, 42, 42) }} {{ '%x %X %o %#x %#o' % (255, 255, 8, 255, 8) }}
{{ '%.2f %8.3f %-8.1f| %e %E %g %g %g' % (3.14159, 2.5, 2.5, 12345.678, 0.00012, 0.00001, 1e10, 100000.0) }} {{ '%G %g %#g' % (1e-10, 0.1, 1.0) }}
{{ '%s %r %s %r' % ('a', 'a', none, "it's") }} {{ '%10s|%-10s|%.2s' % ('abc', 'abc', 'abc') }} {{ '%c%c' % ('a', 98) }} {{ '%s' % [1, 'x'] }} {{ '%s' % d.c }}
{{ '%(a)s-%(b)05.1f' % {'a': 1, 'b': 2} }} {{ '%(a)s' % {'a': 'x', 'z': 1} }} {{ 'none' % {} }} {{ 'none' % [] }}
{{ '%*d|%-*d|%.*f' % (5, 42, 5, 42, 2, 1.5) }} {{ '%i %u' % (3.9, -2) }} {{ '%d' % true }} {{ '%.3d' % 7 }} {{ '%s' % (('a', 'b'),) }}
{{ '%s %s' % 'x' }}
{{ '%s' % ('a', 'b') }}
{{ '%d' % 'x' }}
{{ '%x' % 1.5 }}
{{ '%z' % 1 }}
{{ '%(a)s' % (1,) }}
{{ '%(zz)s' % {'a': 1} }}
{{ 'plain' % 'x' }}
{{ '%' % 1 }}
{{ s % () }} {{ '%s' % nothing }}|{{ "%s, %s!"|format('Hi', s) }} {{ '%(x)s'|format(x=1) }} {{ '%.1f'|format(f) }} {{ '%s'|format(none) }}
{{ '%s %s'|format('x') }}
{{ '{} {}'.format('a', 1) }} {{ '{1} {0}'.format('a', 'b') }} {{ '{x} {y!r}'.format(x=1, y='q') }} {{ '{{}}'.format() }} {{ '{0.name}'.format(d) }}|{{ '{0[b]} {0[c][x]} {1[1]}'.format(d, xs) }}
{{ '{:>5}|{:<5}|{:^5}|{:*^7}|{:05d}|{:+d}|{: d}'.format('a', 'b', 'c', 'd', 42, 42, 42) }} {{ '{:.2f} {:8.3f} {:e} {:g} {:%} {:.1%}'.format(1.005, 2.5, 12345.6, 1e-7, 0.25, 0.125) }}
{{ '{:,} {:_} {:,.2f} {:x} {:#x} {:b} {:o} {:c} {:08,d}'.format(1234567, 1234567, 1234567.891, 255, 255, 5, 8, 97, 1234) }} {{ '{:.3} {:10.4}|{:.3}'.format(3.14159, 3.14159, 'abcdef') }} {{ '{!s:>4}'.format(none) }}
{{ '{:{w}.{p}f}|{:>{w}}'.format(3.14159, 'x', w=8, p=2) }} {{ '{}'.format([1, 'a']) }} {{ '{:}'.format(none) }} {{ '{:d}'.format(true) }} {{ '{:5}|{:<5}'.format(true, 3) }} {{ '{:.0f} {:.0f} {:.0f}'.format(0.5, 1.5, 2.5) }}
{{ '{0:<08d}|{0:^08.3f}|{0:=+9,}|{1:05}|{0:#.0f}|{0:.0}|{0:.3}|{0:#.3}'.format(123.0, 'x') if false else '{0:<08.1f}|{0:^08.3f}|{0:=+9,}|{1:05}|{0:#.0f}|{0:.0}|{0:.3}|{0:#.3}|{2:>#010_x}|{2:=012,}'.format(123.0, 'x', 4095) }} {{ '%#.0e %#.5x %a' % (12.0, 255, '\u00e9') }} {{ '{!a}'.format('\u00e9') }}
{{ '{:-}'.format('x') }}
{{ '{:,x}'.format(5) }}
{{ -0.0|round(method='ceil') }} {{ -0.0|filesizeformat }} {{ -0.4|round }}
{{ '{a} {b}'.format(**{'a': 1, 'b': 2}) }} {{ '{} {}'.format(*[1, 2]) }} {{ '{a}'.format_map({'a': 5}) }}
{{ '{} {1}'.format(1, 2) }}
{{ '{'.format() }}
{{ '}'.format() }}
{{ '{}'.format() }}
{{ '{x}'.format(y=1) }}
{{ '{:d}'.format('x') }}
{{ '{:d}'.format(1.5) }}
{{ '{:>5}'.format(none) }}
{{ '{:.2d}'.format(3) }}
{{ '{0.__class__}'.format(s) }}|

{{ d.keys()|list }} {{ d.values()|list }} {{ d.items()|list }} {{ d['items'] }} {{ d.keys() }} {{ {'a': 1}.items() }} {{ {'a': 1}.values() }}
{{ d.get('b') }} {{ d.get('zz') }} {{ d.get('zz', 'dflt') }} {{ d.b }} {{ d['b'] }} {{ d.c.x }} {{ d.zz }}|{{ d.zz is defined }} {{ 'b' in d }} {{ 'zz' not in d }} {{ d|length }}
{{ d.copy() == d }} {{ dict(a=1, b=2) }} {{ dict([('x', 1), ('y', 2)]) }} {{ dict({'a': 1}, b=2) }} {{ dict() }} {{ dict.fromkeys(['a', 'b'], 0) }} {{ {}.fromkeys('ab') }}
{% for k in d %}{{ k }};{% endfor %}{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k, v in d|items %}{{ k }}{% endfor %}{% for k, v in d|dictsort %}{{ k }}{% endfor %}
{{ {'a': 1, 'a': 2} }} {{ {1: 'i', true: 'b', 1.0: 'f'} }} {{ {(1, 2): 3}[(1, 2)] }} {{ {1: 'x'}[1.0] }} {{ {none: 1} }} {{ {'x': 1}.x }}
{{ {[1]: 2} }}
{{ d.update({'z': 1}) }}
{{ d.pop('b') }}
{{ d.setdefault('q', 1) }}
{% set _ = xs.append(4) %}
{{ xs.sort() }}
{{ xs.append is defined }} {{ d.update is defined }} {{ xs.index(2) }} {{ xs.count(1) }} {{ (1, 1).count(1) }} {{ xs.copy() }} {{ xs.pop }}|{{ xs.__class__ }}|{{ d.__class__ is defined }}
{{ xs.index(99) }}
{{ 'a' in 'abc' }} {{ 'z' in 'abc' }} {{ 2 in xs }} {{ '2' in xs }} {{ 1 in (1, 2) }} {{ 'a' in nothing }} {{ nothing in [] }} {{ '' in '' }} {{ none in [none] }} {{ 2 not in xs }} {{ not 2 in xs }}
{{ 1 in 'abc' }}
{{ 1 in 5 }}
{{ 1 == 1.0 }} {{ true == 1 }} {{ '1' == 1 }} {{ [1, 2] == [1.0, 2] }} {{ (1,) == [1] }} {{ none == false }} {{ {'a': 1, 'b': 2} == {'b': 2, 'a': 1} }} {{ nothing == nada }} {{ 'a' != 'b' }} {{ nothing == none }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 3 > 2 >= 2 }} {{ 'a' < 'b' }} {{ 'B' < 'a' }} {{ [1, 2] < [1, 3] }} {{ (1, 'a') < (1, 'b') }} {{ 1 == 1 != 2 }} {{ 1 < 2 in [2] }} {{ true < 2 }} {{ [1] < [1, 0] }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ nothing < 1 }}
{{ {} < {} }}

{{ nothing }}|{{ nothing|default('x') }}|{{ nothing is defined }}|{{ nothing is undefined }}|{{ not nothing }}|{{ nothing or 'y' }}|{{ nothing|length }}|{{ nothing|list }}|{{ nothing|string }}|{{ nothing|upper }}|{{ nothing|join(',') }}|{{ nothing|first is defined }}
{% for x in nothing %}a{% else %}none{% endfor %}{{ 'a' if nothing }}|{{ ('a' if nothing) is defined }}|{{ d.zz|default('q') }}|{{ ''|default('e', true) }}|{{ none|default('n') }}|{{ none|default('n', boolean=true) }}|{{ 0|d(5, true) }}
{{ nothing.x }}
{{ nothing['x'] }}
{{ d.zz.y }}
{{ d.zz.y|default('x') }}
{{ nothing() }}
{{ nothing + 1 }}
{{ 1 + nothing }}
{{ nothing ~ 'x' }} {{ [nothing]|length }} {{ nothing is none }} {{ nothing is string }} {{ nothing is sequence }} {{ nothing is iterable }} {{ nothing is mapping }} {{ nothing is number }} {{ nothing is callable }}
{{ nothing|int }}
{{ nothing|tojson }}
{{ -nothing }}
{{ nothing|items|list }} {{ nothing|select|list }} {{ nothing|map('upper')|list }} {{ nothing|sort }} {{ nothing|sum }} {{ nothing|reverse|list }} {{ nothing|trim }}| {{ nothing|default(nada)|default('z') }} {{ nothing|last is defined }}
{{ n.real }} {{ f.is_integer() }} {{ 4.0.is_integer() }} {{ n.bit_length() }} {{ n.nothing }}|

{% for x in xs %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }};{% endfor %}
{% for x in xs if x > 1 %}{{ loop.index }}/{{ loop.length }}={{ x }}{{ ',' if not loop.last }}{% else %}none{% endfor %}
{% for x in xs if x > 5 %}{{ x }}{% else %}none{% endfor %}|{% for x in [] %}a{% else %}b{% endfor %}
{% set ns = namespace(last=0) %}{% for x in [1, 1, 2, 2, 3] if x != ns.last %}{{ x }}{% set ns.last = x %}{% endfor %}
{% set ns = namespace(found=false) %}{% for x in xs if not ns.found %}{{ x }}{% set ns.found = true %}{% endfor %}
{% for a, b in [(1, 2), [3, 4], 'xy'] %}{{ a }}{{ b }};{% endfor %}{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}
{% for a, b in [1] %}{{ a }}{% endfor %}
{% for x in 5 %}{{ x }}{% endfor %}
{% for x in none %}{{ x }}{% endfor %}
{% for x in 'abc' %}{{ x }}-{% endfor %}{% for x in range(3) %}{{ x }}{% endfor %}{% for x in (1, 2) %}{{ x }}{% endfor %}{% for x in 1, 2 %}{{ x }}{% endfor %}
{% for x in range(9) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in xs %}{% for y in xs %}{% if y == 1 %}{% break %}{% endif %}{{ loop.index }}{{ x }}{{ y }} {% endfor %}{{ loop.index }};{% endfor %}
{% for n in tree recursive %}{{ n.v }}{% if n.kids %}({{ loop(n.kids) }}){% endif %}{{ loop.depth }}{{ '' if loop.last else ',' }}{% endfor %}
{% for x in xs %}{{ loop(xs) }}{% endfor %}
{% for x in xs %}{% set outer = loop %}{% for y in 'ab' %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}
{% set x = 'o' %}{% for i in xs %}{{ x }}{% set x = i %}{{ x }}{% endfor %}{{ x }}
{% for i in xs %}{% if i == 1 %}{% set x = 'set' %}{% endif %}{{ x }}|{% endfor %}{{ x }}
{% set ns = namespace(a=1, **{'b': 2}) %}{% set ns.a = ns.a + 5 %}{% for i in xs %}{% set ns.b = ns.b + i %}{% endfor %}{{ ns.a }} {{ ns.b }} {{ ns.c }}|{{ ns }} {{ ns['a'] }} {{ ns.c is defined }}
{% set ns = namespace({'x': 1}) %}{% set ns.x, y = 2, 3 %}{{ ns.x }}{{ y }}{% macro m() %}{% set ns.x = ns.x * 10 %}{% endmacro %}{{ m() }}{{ m() }}{{ ns.x }}
{% set ns = namespace() %}{% macro add(v) -%}{% set ns.total = (ns.total or 0) + v %}{%- endmacro %}{% for v in xs %}{{ add(v) }}{% endfor %}{{ ns.total }}
{% set d.x = 1 %}
{% set ns = namespace() %}{% set ns._x = 1 %}
{{ namespace(_a=1) }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set a, b = b, a %}{{ a }}{{ b }}{% set (c, e) = [5, 6] %}{{ c }}{{ e }}{% set t = 1, 2 %}{{ t }}{% set t = (1) %}{{ t }}
{% set a, b = 1 %}
{% set x %}a{{ n }}b{% endset %}[{{ x }}]{% set y | upper | replace('A', 'o') %}abc{% endset %}[{{ y }}]{{ x is string }}
{% set x %}{% set inner = 1 %}t{% endset %}{{ inner is defined }}{{ x }}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% set c = 3 %}{% endwith %}{{ a is defined }}{{ c is defined }}{% with %}{% set q = 1 %}{{ q }}{% endwith %}
{% set a = 5 %}{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}
{% if n > 5 and f %}A{% elif n %}B{% else %}C{% endif %}{% if not xs %}x{% elif no %}y{% else %}z{% endif %}{% if 0 %}a{% endif %}{% if '' or [] or {} or 0.0 %}t{% else %}f{% endif %}
{% if false %}{% set z = 1 %}{% endif %}{{ z is defined }}{% if true %}{% set z = 2 %}{% endif %}{{ z }}
{{ 'a' if n else 'b' }} {{ 'a' if 0 else 'b' if 0 else 'c' }} {{ ('x' if 0)|default('d') }} {{ 1 if true }} {{ (1 if n == 7 else 2) + 1 }}
{{ 0 or 'x' }} {{ 1 and 'y' }} {{ 0 and 1/0 }} {{ 1 or 1/0 }} {{ not 0 }} {{ not (1 and 0) }} {{ [] or none }} {{ '' and 1 }}|{{ not not 1 }} {{ 1 and 0 or 2 }}
{% print 1, 'a' %}{% print s %}

{% macro m(a, b=2, c='x') %}[{{ a }},{{ b }},{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c=5) }}{{ m(b=1, a=2) }}{{ m() }}{{ m(*[1, 2]) }}{{ m(**{'a': 9}) }}
{% macro m(a) %}{{ varargs }}{{ kwargs }}{{ a }}{% endmacro %}{{ m(1, 2, 3, x=4) }}{{ m() }}
{% macro m(a) %}x{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}x{% endmacro %}{{ m(b=2) }}
{% macro m(a) %}x{% endmacro %}{{ m(1, a=2) }}
{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{% macro q(x, y=x ~ 'd', z=y ~ 'e') %}{{ z }}{% endmacro %}{{ q('p') }}
{% macro box(t) %}<{{ t }}:{{ caller() }}>{% endmacro %}{% call box('h') %}in {{ n }}{% endcall %}
{% macro each(xs) %}{% for x in xs %}{{ caller(x, loop.index) }}{% endfor %}{% endmacro %}{% call(v, i) each(xs) %}{{ i }}:{{ v }};{% endcall %}
{% macro m() %}{{ caller is defined }}{% if caller %}c{% endif %}{% endmacro %}{{ m() }}{% call m() %}x{% endcall %}
{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}
{% macro m() %}x{% endmacro %}{% call m() %}y{% endcall %}
{% macro fact(k) %}{{ 1 if k < 2 else k * (fact(k - 1)|int) }}{% endmacro %}{{ fact(6) }}
{% macro m(x) %}{% set y = x %}{{ y }}{% endmacro %}{{ m(1) }}{{ y is defined }}{{ m.name }}{{ m.arguments }}{{ m }}
{% macro m() %}{{ later }}{% endmacro %}{% set later = 'L' %}{{ m() }}{% set later = 'M' %}{{ m() }}
{% for i in xs %}{% macro im() %}{{ i }}{% endmacro %}{{ im() }}{% endfor %}{{ im is defined }}
{% macro a() %}A{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}{{ a()|lower }}{{ a() ~ 'x' }}{{ a() is string }}
{% macro m(a, a2=[]) %}{{ a2 }}{% endmacro %}{{ m(1) }}{{ m(1, a2=none) }}{{ m(nothing) }}
{% macro m(a, b=1, c) %}{% endmacro %}
{% macro m(**kw) %}{% endmacro %}
{{ m() }}{% macro m() %}late{% endmacro %}
{% macro t(x) -%}
  {%- if x is string -%}s{%- elif x is mapping -%}m{%- else -%}o{%- endif -%}
{%- endmacro %}{{ [t('a'), t({}), t(1)]|join('/') }}
{% filter upper %}a{{ n }}b{% endfilter %}{% filter replace('a', 'b')|upper %}aa{% endfilter %}{% filter indent(2) %}x
y{% endfilter %}
{% for x in xs %}{% break %}{% else %}else{% endfor %}{% for x in xs %}{% if x == 1 %}{% continue %}{% endif %}{% else %}no{% endfor %}{% for x in xs %}{{ x }}{% continue %}{% else %}all{% endfor %}
{% filter length %}abc{% endfilter %}
{% generation %}{{ varargs }}{{ kwargs }}{{ caller is defined }}{% endgeneration %}
{% generation %}text {{ n }}{% set g = 1 %}{% endgeneration %}{{ g is defined }}
{% for x in xs %}{% generation %}{{ x }}{% endgeneration %}{% endfor %}{%- generation -%}  t  {%- endgeneration -%}
{% for x in xs %}{% generation %}{% break %}{% endgeneration %}{% endfor %}
{% block b %}in {{ n }}{% endblock %}{% set q = 4 %}{% block c %}{{ q }}{% endblock c %}
{% set c = cycler('a', 'b', 'c') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}
{% set j = joiner('|') %}{{ j() }}a{{ j() }}b{{ j() }}{% set j2 = joiner() %}{{ j2() }}x{{ j2() }}
{{ cycler() }}
{{ raise_exception('no: ' ~ n) }}
{% if n > 100 %}{{ raise_exception('big') }}{% endif %}ok
{{ strftime_now('%Y-%m-%d %H:%M:%S %j %a %A %b %B %y %I %p %d') }}
{{ undefined_function(1) }}
{{ 5() }}
{% include 'x' %}
{% import 'x' as y %}
{% if false %}{% include 'x' %}{% endif %}ok
{% do xs.append(1) %}
{% unknown %}
{% if n %}
{% endif %}
{{ }}
{{ 1 + }}
{{ (1, 2 }}
{{ 'abc }}
{% for x in %}{% endfor %}
{% break %}
{% for x in xs %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}
{{ a b }}
{{ 1 is 2 }}
{{ n|nosuch }}
{% if false %}{{ n|nosuch }}{% endif %}ok{{ n if true else n|nosuch }}
{{ n is nosuch }}
{{ n is odd is even }}
{% set loop = 1 %}{{ loop }}
{% for loop in xs %}{% endfor %}
{% set true = 1 %}
{# comment {{ x }} #}a{#- c -#}  b {#- c #} c{#+ x +#}d
{{ '{{' }} {{ '%}' }} {% raw %}{{ x }}{% y %}{% endraw %} {%- raw -%}  {{ z }}  {%- endraw -%} e
{{ "a\\b" }} {{ 'tab\there' }} {{ 'x\
y' }} {{ '\u00e9\x41\101\q\/' }} {{ "\"'" }} {{ '\'' }} {{ '\é' }}
{{ '\x4' }}

{{ 1 is odd }} {{ 2 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ n is number }} {{ f is float }} {{ n is integer }} {{ true is integer }} {{ true is boolean }} {{ true is number }} {{ 1 is true }} {{ false is false }}
{{ s is string }} {{ xs is sequence }} {{ d is sequence }} {{ s is sequence }} {{ n is sequence }} {{ d is mapping }} {{ xs is mapping }} {{ xs is iterable }} {{ n is iterable }} {{ no is none }} {{ range is callable }} {{ s is callable }} {{ s.upper is callable }}
{{ 'abc' is lower }} {{ 'ABC' is upper }} {{ 'aB' is lower }} {{ '12' is lower }} {{ 3 is eq 3 }} {{ 3 is equalto(3) }} {{ 3 is ne 4 }} {{ 3 is gt 2 }} {{ 3 is lt(2) }} {{ 3 is ge 3 }} {{ 3 is le 2 }} {{ 2 is in [1, 2] }} {{ 'a' is in 'abc' }} {{ 5 is not in xs }}
{{ 'upper' is filter }} {{ 'zz' is filter }} {{ 'odd' is test }} {{ no is sameas none }} {{ 1 is sameas true }} {{ xs is sameas xs }} {{ s is not string }} {{ not s is string }} {{ n is defined and n is odd }} {{ s is escaped }} {{ (s|e) is escaped }} {{ xs|map('upper') is iterable }} {{ xs|map('upper') is sequence }}
{{ d.zz is not defined }} {{ d.zz is defined or 1 }} {{ n is not none and 1 }} {{ 1 is greaterthan 0 }} {{ 1 is lessthan 0 }} {{ n is string or n is number }} {{ -1 is number }} {{ 3 + 1 is number }}
{{ 'a' is odd }}
{{ 3 is divisibleby 0 }}

{{ xs|tojson }} {{ d|tojson }} {{ u|tojson }} {{ u|tojson(ensure_ascii=true) }} {{ html|tojson }} {{ none|tojson }} {{ true|tojson }} {{ 1.0|tojson }} {{ 1e100|tojson }} {{ (1, 2)|tojson }} {{ 'a\n"\\\x01/'|tojson }} {{ {}|tojson }} {{ [[], {}]|tojson(indent=2) }}
{{ d|tojson(indent=2) }}{{ d|tojson(indent='--') }}{{ d|tojson(indent=0) }}{{ d|tojson(separators=(',', ':')) }}{{ d|tojson(sort_keys=true) }}{{ d|tojson(indent=4, sort_keys=True, separators=(', ', '= ')) }}
{{ {1: 2, none: 3, true: 4, 1.5: 5, 'x': 6}|tojson }} {{ d|tojson(true) }} {{ d|tojson(indent=none) }} {{ xs|tojson(indent=1) }}
{{ {(1, 2): 3}|tojson }}
{{ range(3)|tojson }}
{{ xs|map('string')|tojson }}
{{ {1: 1, 'a': 2}|tojson(sort_keys=true) }}
{{ xs|join }} {{ xs|join(', ') }} {{ people|join(', ', attribute='name') }} {{ people|join('-', 'age') }} {{ s|join('.') }} {{ [1, none, 2.0, true, nothing]|join('|') }} {{ d|join(',') }} {{ []|join }}|{{ xs|join(1) }}
{{ n|join }}
{{ xs|length }} {{ s|count }} {{ d|length }} {{ xs|first }} {{ xs|last }} {{ s|first }} {{ s|last }} {{ []|first }}|{{ []|last is defined }} {{ d|first }} {{ range(4)|last }} {{ d.items()|first }} {{ xs|map('string')|first }}
{{ n|length }}
{{ no|length }}
{{ xs|map('string')|length }}
{{ xs|map('string')|last }}
{{ xs|sort }} {{ xs|sort(reverse=true) }} {{ words|sort }} {{ words|sort(case_sensitive=true) }} {{ people|sort(attribute='age')|map(attribute='name')|list }} {{ people|sort(attribute='age,name', reverse=true)|map(attribute='name')|join }} {{ d|sort }} {{ 'hello'|sort|join }} {{ [(2, 'a'), (1, 'b')]|sort }}
{{ [1, 'a']|sort }}
{{ [1, none]|sort }}
{{ xs|min }} {{ xs|max }} {{ words|min }} {{ words|max(case_sensitive=true) }} {{ (people|max(attribute='age')).name }} {{ []|min is defined }} {{ xs|sum }} {{ people|sum(attribute='age') }} {{ [0.1, 0.2]|sum }} {{ xs|sum(start=10) }} {{ [[1], [2]]|sum(start=[]) }} {{ []|sum }}
{{ ['a']|sum }}
{{ xs|reverse|list }} {{ s|reverse }} {{ range(3)|reverse|list }} {{ xs|unique|list }} {{ words|unique|list }} {{ words|unique(case_sensitive=true)|list }} {{ people|unique(attribute='age')|map(attribute='name')|list }} {{ [1, 1.0, true, 2]|unique|list }} {{ xs|list }} {{ 'abc'|list }} {{ d|list }}
{{ [[1], [1]]|unique|list }}
{{ people|map(attribute='name')|list }} {{ people|map(attribute='tags.0', default='-')|list }} {{ people|map(attribute='tags')|list }} {{ words|map('upper')|list }} {{ words|map('replace', 'p', 'P')|list }} {{ [[1, 2], [3]]|map('sum')|list }} {{ [[1, 2], [3]]|map('first')|list }} {{ [[1, 2], [3]]|map(attribute=0)|list }} {{ ['1', 'x']|map('int', default=5)|list }}
{{ xs|map('nosuch')|list }}
{{ xs|map|list }}
{{ xs|select('odd')|list }} {{ xs|reject('odd')|list }} {{ xs|select('gt', 1)|list }} {{ [0, 1, '', 'a', none]|select|list }} {{ [0, 1]|reject|list }} {{ people|selectattr('tags')|map(attribute='name')|list }} {{ people|selectattr('age', 'equalto', 31)|map(attribute='name')|list }} {{ people|rejectattr('age', 'lt', 30)|list|length }} {{ people|selectattr('tags', 'defined')|list|length }} {{ people|selectattr('city', 'in', ['Oslo', 'Rome'])|map(attribute='name')|join('+') }} {{ xs|select('in', [1, 2])|list }}
{{ xs|select('nosuch')|list }}
{% set g = xs|select('odd') %}{{ g|list }}{{ g|list }}{{ g is iterable }}{% for x in g %}x{% endfor %}
{% set g = xs|map('string') %}{{ g|first }}{{ g|list }}
{% for g in people|groupby('city') %}{{ g.grouper }}:{{ g.list|map(attribute='name')|join(',') }};{% endfor %}{% for c, l in people|groupby('age') %}{{ c }}={{ l|length }};{% endfor %}{{ (people|groupby('city'))[0][0] }}{{ people|groupby('tags.0', default='none')|map('first')|list }}
{{ [{'a': 1}]|groupby('a') }} {{ d|dictsort }} {{ {'b': 1, 'A': 2}|dictsort }} {{ {'b': 1, 'A': 2}|dictsort(true) }} {{ {'b': 1, 'A': 2}|dictsort(by='value') }} {{ {'b': 1, 'a': 2}|dictsort(reverse=true) }}
{{ range(7)|batch(3)|list }} {{ range(7)|batch(3, 'x')|list }} {{ range(7)|slice(3)|list }} {{ range(7)|slice(3, 'x')|list }} {{ []|batch(2)|list }} {{ []|slice(2)|list }}
{{ s|upper }} {{ s|lower }} {{ 'hELLO wORLD'|capitalize }} {{ p|trim }} {{ 'xxaxx'|trim('x') }} {{ n|upper }} {{ none|lower }} {{ s|wordcount }} {{ u|wordcount }} {{ "don't"|wordcount }} {{ 42|string ~ 'x' }} {{ [1]|string }} {{ n|string is string }} {{ s|title }}
{{ 'ab'|center(6) }}|{{ 'x'|center }}|{{ s|truncate(8) }}|{{ s|truncate(5, leeway=0) }}|{{ long|truncate(20) }}|{{ long|truncate(20, true) }}|{{ long|truncate(20, false, '~') }}|{{ long|truncate(20, end='') }}|{{ long|truncate }}
{{ s|truncate(1, leeway=0) }}
{{ 'a\nb\n\nc'|indent }}|{{ 'a\nb'|indent(2, true) }}|{{ 'a\n\nb'|indent(2, blank=true) }}|{{ 'a\nb'|indent('> ') }}|{{ 'a\nb'|indent(width=1, first=true) }}|{{ ''|indent }}|{{ 'a\n'|indent }}|
{{ 5|indent }}
{{ long|wordwrap(20) }}|{{ long|wordwrap(10, false) }}|{{ 'abcdefghij'|wordwrap(4) }}|{{ long|wordwrap(15, wrapstring='<br>') }}|{{ long|wordwrap(20, break_on_hyphens=false) }}|{{ 'a\n\nb c'|wordwrap(1) }}
{{ d|pprint }}|{{ people|pprint }}|{{ long|pprint }}|{{ [long, long]|pprint }}|{{ s|pprint }}|{{ {'k': (long * 2, 1), 'a': [html]}|pprint }}|{{ (long,)|pprint }}|{{ range(3)|pprint }}|{{ ('ab\\ncd ' * 20)|pprint }}|{{ tree|pprint }}|{{ 'x'|pprint }}|{{ ('x' * 90)|pprint }}
{{ html|e }} {{ html|escape|escape }} {{ html|forceescape }} {{ html|safe }} {{ html|striptags }} {{ (html|e)|forceescape }} {{ ('<'|e) + '<' }} {{ '<' + ('>'|e) }} {{ ('<'|e) ~ '<' }} {{ ['<'|e] }} {{ ('%s'|e) % '<' }} {{ n|e }}
{{ 'a b/c?d=e&f'|urlencode }} {{ {'a': 1, 'b c': 'd/e'}|urlencode }} {{ [('x', 'y z')]|urlencode }} {{ u|urlencode }} {{ 3|urlencode }}
{{ {'class': 'a', 'id': none, 'x': 1, 'q': '"<'}|xmlattr }}|{{ {'a': nothing}|xmlattr }}|{{ {'a': 1}|xmlattr(false) }}
{{ {'a b': 1}|xmlattr }}
{{ 1|filesizeformat }} {{ 999|filesizeformat }} {{ 1000|filesizeformat }} {{ 1234567|filesizeformat }} {{ 1024|filesizeformat(true) }} {{ 1e12|filesizeformat }} {{ '2048'|filesizeformat(binary=true) }} {{ 0|filesizeformat }}
{{ 42.55|round }} {{ 42.55|round(1) }} {{ 42.55|round(1, 'floor') }} {{ 42.4|round(method='ceil') }} {{ 2.5|round }} {{ 3.5|round }} {{ -2.5|round }} {{ 5|round }} {{ 1234|round(-2) }} {{ 1250|round(-2) }} {{ 2.675|round(2) }} {{ 1234.5|round(-2) }} {{ 7|round(1, 'floor') }} {{ 42.55|round|int }}
{{ 'x'|round }}
{{ 1.5|round(method='up') }}
{{ '42'|int }} {{ ' 42 '|int }} {{ '42.9'|int }} {{ 'x'|int }} {{ 'x'|int(5) }} {{ '0x1f'|int(base=16) }} {{ '1f'|int(0, 16) }} {{ '0b11'|int(base=2) }} {{ 3.9|int }} {{ -3.9|int }} {{ none|int }} {{ true|int }} {{ '1_000'|int }} {{ ''|int }} {{ '-5'|int }} {{ [1]|int }} {{ '1e3'|int }}
{{ '2.5'|float }} {{ 'x'|float }} {{ 'x'|float(1.5) }} {{ 3|float }} {{ 'inf'|float }} {{ '-1e3'|float }} {{ none|float }} {{ 'nan'|float }} {{ '1_0.5'|float }} {{ -3|abs }} {{ -2.5|abs }} {{ true|abs }}
{{ 'a'|abs }}
{{ d|attr('b') is defined }} {{ s|attr('upper') is callable }} {{ d|attr('keys') is callable }} {{ s|attr('zz') is defined }} {{ s|replace('l', 1) }} {{ 121|replace(1, 'x') }} {{ s|default }} {{ s|list|length }} {{ xs|map('abs')|sum }}
{{ -3|abs }} {{ (-3)|abs }} {{ 1 + 2|abs }} {{ n|string|length }} {{ [1, 2]|first + 1 }} {{ 'a' ~ 'b'|upper }} {{ not xs|length }} {{ xs|length > 2 }} {{ -n|string }} {{ 2 ** 3|string|length }}
{{ xs|sort(foo=1) }}
{{ s|upper(1) }}
{{ s|replace('l') }}
{{ s.upper(1) }}
{{ s.split(sep=',', foo=1) }}
{{ s.replace('a', new='b') }}
{{ people[0].name }} {{ people.0.name }} {{ people[0]['name'][0] }} {{ people|length }} {{ (people|first).city }} {{ people[-1].tags }} {{ [1, [2, 3]][1][0] }} {{ 'abc'.0 }} {{ {'a': {'b': [5]}}.a.b[0] }} {{ xs[n - 5] }} {{ xs[-1:][0] }} {{ d.c['x'] }}
{{ {'a': 1,} }} {{ [1, 2,] }} {{ (1, 2,) }} {{ m is defined }} {{ [x for x in xs] }}
{{ [1, 2,] }} {{ {'a': 1,}.a }} {{ dict(a=1,) }} {{ ((1)) }} {{ (((1,)),) }} {{ [[]] }} {{ [1,2][0] }} {{ {}['x'] }}|{{ {1:2}[1] }}
{{ [1, 2]|truncate(5) }} {{ nothing|truncate(3) }}|{{ d|truncate is mapping }} {{ 1e16 / 7.5 }} {{ 1e15 / 3 }} {{ 5e-324 }} {{ 2.0 ** 70 }} {{ range(0)[::2] }} {{ 'x' % range(2) }} {{ 'x' % nothing }} {{ ('3'|safe)|list }} {{ ('-'|safe).join(['<', 1]) }}
{% set g = xs|select('odd') %}{{ 3 in g }}{{ 9 not in xs|map('abs') }}{{ 'fig' is in(words|map('lower')) }}
{{ xs|truncate(1, leeway=0) }}
{{ messages[0]['role'] }} {{ messages[0].content }} {{ messages|length }} {{ messages[-1]['content'][:2] }} {{ bos_token ~ eos_token }} {{ tools is none }} {{ tools }} {{ documents }} {{ add_generation_prompt }} {{ messages }} {{ tools is defined and tools }}
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}{{ message.role }}{% endfor %}
{% set loop_messages = messages[1:] if messages[0]['role'] == 'system' else messages %}{{ loop_messages|length }}{% set sys = (messages|selectattr('role', 'eq', 'system')|list)[0] %}{{ sys is defined }}{{ messages|map(attribute='role')|list|unique|join }}
{%- set content = messages[0].content -%}{%- if content is string -%}S{%- elif content is iterable and content is not mapping -%}L{%- endif -%}{{- '\n' -}}{{- content|trim -}}
{% autoescape true %}{{ '<' }}{{ '<'|safe }}{% endautoescape %}{{ '<' }}
""".strip("\n")

# What does not fit on one line.
MORE = [
    "  {% if true %}\n  a\n  {% endif %}\n  b\n",
    "x\n\n  {%- if true %}\n  a\n  {%- endif %}\n  b\n\n",
    "a  {%+ if true %}b{% endif +%}\n c\n",
    "{% if true -%}\n\n   a   \n{%- endif %}\n\nb",
    "{{ 'x' }}\n{{ 'y' }}\n",
    "{{- 'x' -}}\n \n{{ 'y' }}  \n",
    "  {{ 'x' }}\n  {# c #}\n  {#- c -#}  y\n{# z #}\nq",
    "  {% raw %}\n {{ a }} \n  {% endraw %}\n b",
    "a\r\nb\rc\r\n{{ 'd\r\ne' }}\n\n",
    "{% for x in xs %}\n  - {{ x }}\n{% endfor %}\nend",
    "{% for x in xs -%}\n  {{ x }},\n{%- endfor %}\nend\n",
    "{%- macro f(a) %}\n  {{ a }}\n{% endmacro -%}\n[{{ f(1) }}]",
    "{% set x %}\n  a\n{% endset %}\n[{{ x }}]",
    "\t{% set a = 1 %}\t{% set b = 2 %}\nx",
    "\u00a0{% if true %}a{% endif %}\n",
    "a\n    {% if true %}b{% endif %} c\n    {% endif_ %}",
    "{{ {\n 'a': [1,\n 2]\n}['a'] }}",
    "{{\n  s\n  | upper\n}}",
    "{% if n == 7\n   and f == 2.5 %}y{% endif %}",
    "{{ '}}' ~ \"%}\" ~ '#}' }}{# '}}' #}{% if '%}' %}z{% endif %}",
    "{%- for m in messages -%}\n{{ m.role + ': ' + m.content }}\n{%- if not loop.last %}\n{{ '\\n' }}{% endif -%}\n{%- endfor -%}",
    "{{ 'a' }}{% if true %}\n{% if true %}\n  b\n{% endif %}\n{% endif %}c",
    "{% call(x) (xs) %}{% endcall %}",
    "{{ x }}{% set x = 1 %}{{ x }}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}",
    "{{ n }}{% set n = n + 1 %}{{ n }}{% for i in [1] %}{{ n }}{% set n = 0 %}{{ n }}{% endfor %}{{ n }}",
    "#{ x }# {{ 1 }}# {% if 1 %}# {% endif %}{ { } } {%",
    "{ {{ 1 }} } {{ '{' }}{{ '}' }}",
]

MESSAGES = [{"role": "user", "content": " hi there "}, {"role": "assistant", "content": "yes"}]
USUAL = {"bos_token": "<s>", "eos_token": "</s>"}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def cases():
    """A template goes on in the next line while its blocks are open, which a few do."""
    lines, made = iter(LINES.split("\n")), []
    for line in lines:
        if not line:
            continue
        while ("macro t(" in line and "join('/')" not in line) or (
            line.endswith("x\\") or line.endswith("%}x")
        ):
            line += "\n" + next(lines)
        made.append(line)
    return made + MORE


def render(source):
    """What transformers gives: text, words of raise_exception, or a failure."""
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            conversations=[MESSAGES], chat_template=source, **USUAL, **VARIABLES
        )
        return {"text": texts[0]}
    except jinja2.exceptions.TemplateError as error:
        if type(error) is jinja2.exceptions.TemplateError:
            return {"refused": str(error)}
        return {"failed": True}
    except Exception:
        return {"failed": True}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    chat_template_utils.datetime = Clock
    rows = [{"template": source, **render(source)} for source in cases()]
    if not arguments.check:
        head = {
            "jinja2": jinja2.__version__,
            "python": platform.python_version(),
            "transformers": transformers.__version__,
            "now": int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp()),
            "usual": USUAL,
            "messages": MESSAGES,
            "variables": VARIABLES,
        }
        body = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        head = json.dumps(head, ensure_ascii=False)[:-1]
        GOLDEN.write_text(f'{head}, "cases": [\n{body}\n]}}\n', encoding="utf-8")
        print(f"{len(rows)} cases")
        return 0
    kept = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]
    wrong = [row["template"] for row, known in zip(rows, kept) if row != known]
    for source in wrong:
        print(f"FAIL template: {source!r}")
    return 1 if wrong or len(rows) != len(kept) else 0


if __name__ == "__main__":
    sys.exit(main())
