//! Chat templates against transformers, and against templates that mean harm.

#![expect(clippy::unwrap_used, reason = "a test may fail by it, in its own functions too")]

mod compare;

use serde_json::{Value, json};
use std::path::Path;
use text::{ChatTemplate, Error, TemplateFiles};

fn template(source: &str) -> Result<ChatTemplate, Error> {
    let config = br#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true,
                      "pad_token": null}"#;
    let files = TemplateFiles {
        tokenizer_config: Some(config),
        chat_template: Some(source.as_bytes()),
        ..TemplateFiles::default()
    };
    Ok(ChatTemplate::load(&files)?.unwrap())
}

fn render(source: &str) -> Result<String, Error> {
    template(source)?.render(&json!([{"role": "user", "content": "hi"}]), false)
}

#[test]
fn templates_render_as_by_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat");
    let (cases, differ) = compare::goldens(&folder.join("goldens.json"), &folder.join("templates"));
    assert!(cases >= 150, "{cases}");
    assert!(differ.is_empty(), "{} of {cases}:\n{}", differ.len(), differ.join("\n\n"));
}

#[test]
fn a_checkpoint_says_where_its_template_is() {
    let load = |config: &[u8], map: Option<&'static [u8]>, file: Option<&'static [u8]>| {
        ChatTemplate::load(&TemplateFiles {
            tokenizer_config: Some(config),
            special_tokens_map: map,
            chat_template: file,
            ..TemplateFiles::default()
        })
    };
    let text = |loaded: Result<Option<ChatTemplate>, Error>| {
        loaded.unwrap().unwrap().render(&json!([{"role": "user", "content": "hi"}]), true).unwrap()
    };
    assert!(ChatTemplate::load(&TemplateFiles::default()).unwrap().is_none());
    assert!(load(b"{}", None, None).unwrap().is_none());
    assert!(load(br#"{"chat_template": null}"#, None, None).unwrap().is_none());
    let config = br#"{"chat_template": "{{ bos_token }}c", "bos_token": {"content": "<b>"}}"#;
    assert_eq!(text(load(config, None, None)), "<b>c");
    let map = Some(&br#"{"bos_token": "<map>", "eos_token": "<e>"}"#[..]);
    assert_eq!(text(load(config, map, Some(b"{{ bos_token }}{{ eos_token }}f\n"))), "<map><e>f");
    let list = br#"{"chat_template": [{"name": "tool_use", "template": "t"},
                                      {"name": "default", "template": "d"}]}"#;
    assert_eq!(text(load(list, None, None)), "d");

    for (config, file, said) in [
        (&b"[]"[..], None, "tokenizer_config.json: is no object"),
        (b"{", None, "tokenizer_config.json: is no object"),
        (br#"{"chat_template": 7}"#, None, "neither a string nor a list"),
        (br#"{"chat_template": [{"name": "rag", "template": "r"}]}"#, None, "named default"),
        (br#"{"chat_template": [{"name": "default"}]}"#, None, "with a name and a template"),
        (b"{}", Some(&b"a\xff"[..]), "chat_template.jinja: is not UTF-8, from byte 1"),
        (b"{}", Some(b"a\n{% if %}"), "the chat template, line 2"),
    ] {
        let error = load(config, None, file).err().unwrap().to_string();
        assert!(error.contains(said), "{error}");
    }
    let long = "x".repeat((1 << 18) + 1);
    let error = template(&long).err().unwrap().to_string();
    assert!(error.contains("at most 262144"), "{error}");
}

#[test]
fn what_is_no_conversation_is_refused() {
    let template = template("{{ messages[0].role }}").unwrap();
    for messages in [json!(null), json!([]), json!({"role": "user"}), json!(["a"]), json!([[]])] {
        assert_eq!(template.render(&messages, false), Err(Error::Messages), "{messages}");
    }
}

#[test]
fn the_clock_stands_still_unless_it_is_set() {
    let template = template("{{ strftime_now('%d %b %Y') }}").unwrap();
    let messages = json!([{"role": "user", "content": ""}]);
    assert_eq!(template.render(&messages, false).unwrap(), "26 Jul 2024");
    let template = template.with_now(1_000_000_000);
    assert_eq!(template.render(&messages, false).unwrap(), "09 Sep 2001");
}

#[test]
fn a_failing_template_names_its_line() {
    for (source, line, said) in [
        ("a\nb {{ messages[0].content.no_method() }}", 2, "no_method"),
        ("{{ nothing.at_all }}", 1, "undefined"),
        ("\n\n{{ messages | no_filter }}", 3, "no_filter"),
        ("{% include 'other' %}", 1, "include"),
        ("{% import '/etc/hostname' as h %}", 1, "import"),
        ("{{ strftime_now('%Q') }}", 1, "%Q is not known"),
        ("{{ messages | tojson(indent=9999) }}", 1, "at most 64"),
        ("{{ 1 / 0 }}", 1, "1 / 0"),
    ] {
        let error = render(source).unwrap_err().to_string();
        assert!(error.contains(&format!("line {line}")) && error.contains(said), "{error}");
    }
    let error = render("{{ raise_exception('no\u{1b}[2J\u{202e} thanks') }}").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the chat template refuses the conversation: no\\u{1b}[2J\\u{202e} thanks"
    );
}

/// How much longer a template may take than one that spends the same budget on plain steps, on a machine
/// that does something else, too. Forty is what the dearest takes.
const DEAREST: f64 = 400.0;

/// Each would take the machine's time, memory or stack if nothing held it.
#[test]
fn a_template_that_means_harm_ends_soon() {
    let doubling = |start: &str, twice: &str, use_it: &str| {
        format!(
            "{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}\
             {{% set ns.x = {twice} %}}{{% endfor %}}{{{{ {use_it} }}}}"
        )
    };
    let timed = |source: &str| {
        let began = std::time::Instant::now();
        let result = render(source);
        (result, began.elapsed().as_secs_f64())
    };
    // The plainest way to spend the whole budget, a step at a time.
    let steps = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let (result, plain) = timed(steps);
    assert!(result.is_err());
    for source in [
        doubling("'ab'", "ns.x ~ ns.x", "1"),
        doubling("'ab'", "ns.x + ns.x", "1"),
        doubling("'ab'", "ns.x * 9", "1"),
        doubling("'ab'", "ns.x.replace('a', 'aa')", "1"),
        doubling("'ab'", "ns.x | replace('b', 'bb')", "1"),
        doubling("'ab'", "'%s%s' | format(ns.x, ns.x)", "1"),
        doubling("'ab'", "'{}{}'.format(ns.x, ns.x)", "1"),
        doubling("'ab'", "[ns.x, ns.x] | join", "1"),
        doubling("[1]", "[ns.x, ns.x]", "ns.x | tojson"),
        doubling("[1]", "[ns.x, ns.x]", "ns.x"),
        doubling("[1]", "[ns.x, ns.x]", "ns.x | string | length"),
        doubling("{}", "{'a': ns.x, 'b': ns.x}", "ns.x | tojson(indent=60)"),
        "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}\
         {% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}\
         {{ ns.x == ns.y }}"
            .into(),
        doubling("[1]", "ns.x + ns.x", "ns.x | list | length"),
        doubling("[1]", "ns.x * 99", "ns.x | sort | length"),
        "{{ 'x' * 99999999 }}{{ 'x' * 99999999 }}".into(),
        "{{ range(99999999999) | list | length }}".into(),
        "{{ messages[0].content.join(range(99999) | list) * 99999 }}".into(),
        "{{ 'x'.center(99999999999) }}".into(),
        "{{ '%99999999999d' | format(1) }}".into(),
        "{{ 'x' | indent(99999999999) }}".into(),
        "{{ 9 ** 9 ** 9 ** 9 }}".into(),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into(),
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}".into(),
        format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)),
        format!("{{{{ 1{} }}}}", "[0]".repeat(87_000)),
        format!("{}{}", "{% if 1 %}".repeat(12_000), "{% endif %}".repeat(12_000)),
    ] {
        let (result, took) = timed(&source);
        let shown: String = source.chars().take(120).collect();
        assert!(result.is_err(), "{shown}: {:?}", result.map(|text| text.len()));
        assert!(took < DEAREST * plain, "{shown}: {:.1} times a plain loop", took / plain);
    }
}

/// Eight times as many tags take eight times as long, and not sixty-four.
#[test]
fn tags_are_looked_for_once() {
    let best = |tags: usize| {
        let source = "{% if 1 %}".repeat(tags);
        let once = |_| {
            let began = std::time::Instant::now();
            assert!(render(&source).is_err());
            began.elapsed().as_secs_f64()
        };
        (0..5).map(once).fold(f64::INFINITY, f64::min)
    };
    let ratio = best(24_000) / best(3_000);
    assert!(ratio < 30.0, "eight times as many tags take {ratio:.1} times as long");
}

/// The parser goes one call deeper for each sign.
#[test]
fn a_row_of_signs_has_the_stack_it_takes() {
    for (sign, count, text) in [("not ", 65_000, "True"), ("-", 130_000, "1"), ("- ", 130_000, "1")]
    {
        let made = render(&format!("{{{{ {}1 }}}}", sign.repeat(count)));
        assert!(made.as_ref().map_or(true, |made| made == text), "{sign}: {made:?}");
    }
}

/// A value as deep as the budget allows is freed, printed, compared and used as a key.
#[test]
fn deep_values_are_harmless() {
    let nested = format!("{}ns.x{}", "[".repeat(50), "]".repeat(50));
    let user = json!([{"role": "user", "content": "x".repeat(8 << 20)}]);
    for (step, last) in [
        (nested.as_str(), "ns.x | length"),
        (&nested, "ns.x == [ns.x]"),
        (&nested, "{ns.x: 1} | length"),
        (&nested, "ns.x"),
        (&nested, "ns.x | tojson"),
        (&nested, "ns.x | pprint"),
        (&nested, "[ns.x, [ns.x]] | sort | length"),
        (&nested, "nothing.at_all"),
        ("{'a': {'a': {'a': ns.x}}}", "ns.x"),
        ("(ns.x,)", "ns.x | length"),
    ] {
        // The second count runs out of budget at full depth.
        for times in [600, 99_999] {
            let source = format!(
                "{{% set ns = namespace(x=[]) %}}{{% for a in range(20) %}}\
                 {{% for b in range({times}) %}}{{% set ns.x = {step} %}}{{% endfor %}}\
                 {{% endfor %}}{{{{ {last} }}}}"
            );
            match template(&source).unwrap().render(&user, false) {
                Ok(text) => assert!(times == 600 && !text.is_empty()),
                Err(Error::TemplateBudget { .. }) => {}
                Err(error) => assert!(times == 600, "{step} {last}: {error}"),
            }
        }
    }
}

#[test]
fn a_long_conversation_has_its_budget() {
    let messages: Vec<Value> = (0..20_000)
        .map(|i| {
            let role = if i % 2 == 0 { "user" } else { "assistant" };
            json!({"role": role, "content": "some words, one after the other. ".repeat(20)})
        })
        .collect();
    let source = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}\
                  {{ '[INST] ' + m.content | trim + ' [/INST]' }}{% else %}\
                  {{ m.content.strip() ~ eos_token }}{% endif %}{% endfor %}";
    let text = template(source).unwrap().render(&Value::Array(messages), false).unwrap();
    assert!(text.len() > 20_000 * 600 && text.ends_with("other.</s>"));
}

/// As jinja2 3.1.6 under transformers 5.23.0.
#[test]
fn what_python_has_and_the_interpreter_lacks_is_mended() {
    for (source, text) in [
        ("{{ 'Paris.\\\nYour base.' }}", "Paris.Your base."),
        ("{{ 'a\\x41\\u00e9\\101\\q' }}", "aA\u{e9}A\\q"),
        ("a\r\n{{ 'b\r\nc' }}\rd", "a\nb\nc\nd"),
        ("{{ '%s and %d' % ('x', 3) }}", "x and 3"),
        ("{{ '%5.2f|%-4s|%04d|%+d|%x|%%' % (1.005, 'a', -7, 5, 255) }}", " 1.00|a   |-007|+5|ff|%"),
        ("{{ '%(role)s' % messages[0] ~ '!' }}", "user!"),
        ("{{ 'a b c'.rsplit(' ', 1)[0] }}", "a b"),
        ("{{ 'a=b'.partition('=')[2] }}", "b"),
        ("{{ 'foobar'.removeprefix('foo') ~ 'foobar'.removesuffix('bar') }}", "barfoo"),
        (
            "{{ '7'.zfill(3) ~ '-7'.zfill(3) ~ 'a'.center(4, '*') ~ 'a'.ljust(2, '.') }}",
            "007-07*a**a.",
        ),
        ("{{ 'hello'.index('l') }}", "2"),
        ("{{ 1e20 }} {{ 1e-7 }} {{ 1.5 }}", "1e+20 1e-07 1.5"),
        ("{% raw %}{{ 'a' % 'b' }}{% endraw %}", "{{ 'a' % 'b' }}"),
    ] {
        assert_eq!(render(source).unwrap(), text, "{source}");
    }
    let nested = format!("{{{{ {} 1 {} }}}}", "'%s' % (".repeat(40_000), ")".repeat(40_000));
    let padded = "{% for _ in range(999) %}{% set x = 'a'.ljust(65536) %}{% endfor %}";
    for source in [
        "{{ '%999999999d' % 1 }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ 'a'.ljust(9, 'bc') }}",
        "{{ '%s' % () }}",
        // Each is small enough, and together they are more than the budget.
        padded,
        &nested,
    ] {
        assert!(render(source).is_err(), "{}", &source[..60.min(source.len())]);
    }
}

/// As transformers' `get_chat_template` chooses, in 5.23.0.
#[test]
fn a_template_for_tools_is_taken_where_there_are_tools() {
    let config = br#"{"chat_template": [{"name": "tool_use", "template": "t {{ tools | length }}"},
                                        {"name": "default", "template": "d {{ tools is none }}"}]}"#;
    let listed = TemplateFiles { tokenizer_config: Some(config), ..TemplateFiles::default() };
    let additional = [("tool_use".to_string(), b"f {{ tools[0].name }}".to_vec())];
    let filed = TemplateFiles { chat_template: Some(b"e"), additional: &additional, ..listed };
    let messages = json!([{"role": "user", "content": "hi"}]);
    let tools = json!([{"name": "tide"}]);
    for (files, tools, text) in [
        (&listed, None, "d True"),
        (&listed, Some(&json!([])), "t 0"),
        (&listed, Some(&tools), "t 1"),
        (&filed, None, "e"),
        (&filed, Some(&tools), "f tide"),
    ] {
        let template = ChatTemplate::load(files).unwrap().unwrap();
        assert_eq!(template.render_with(&messages, tools, false).unwrap(), text);
    }
    // Files of their own replace all of tokenizer_config.json, as there.
    let alone = TemplateFiles { additional: &additional, ..listed };
    let error = ChatTemplate::load(&alone).err().unwrap().to_string();
    assert!(error.contains("none named default"), "{error}");
}

/// As `apply_chat_template` does: a template that asks whether a key is there finds none.
#[test]
fn a_key_of_a_message_that_is_null_is_left_out() {
    let template = template("{{ messages[0].content is defined }} {{ messages[0].role }}").unwrap();
    let messages = json!([{"role": "assistant", "content": null, "tool_calls": []}]);
    assert_eq!(template.render(&messages, false).unwrap(), "False assistant");
}

/// What would be made is charged before it is allocated: none of these takes time or memory.
#[test]
fn a_width_above_the_budget_is_an_error_at_once() {
    for source in [
        "{{ 'x' * 10**9 }}",
        "{{ 10**18 * 'xy' }}",
        "{{ [0] * 10**9 }}",
        "{{ (0,) * 10**30 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%-999999999999999999999999d' % 1 }}",
        "{{ '%*d' % (10**9, 1) }}",
        "{{ '%.999999999f' % 1.0 }}",
        "{{ '%.999999999d' % 1 }}",
        "{{ '%999999999s' | format('x') }}",
        "{{ '{:999999999}'.format('x') }}",
        "{{ '{:0999999999,d}'.format(7) }}",
        "{{ '{:{w}}'.format(1, w=10**9) }}",
        "{{ '{:.999999999f}'.format(1.5) }}",
        "{{ 'a\nb' | indent(10**9) }}",
        "{{ 'x' | center(10**9) }}",
        "{{ 'x'.center(10**9) }}{{ 1 }}",
        "{{ 'x'.ljust(10**9, '-') }}",
        "{{ 'x'.rjust(10**30) }}",
        "{{ 'x'.zfill(10**9) }}",
        "{{ 'a\tb'.expandtabs(10**9) }}",
        "{{ [1] | batch(10**9, 'x') | list }}",
        "{{ [1] | slice(10**9) | list }}",
        "{{ ('x' * 10**6).replace('x', 'y' * 10**4) }}",
        "{{ ('x' * 10**6).join('y' * 10**4) }}",
        "{{ ['x' * 10**6, 'x' * 10**6] | join('y' * 10**7) }}",
        "{{ ('a b ' * 10**5) | wordwrap(1, wrapstring='y' * 10**5) }}",
    ] {
        let made = render(source).map(|text| text.len());
        assert!(matches!(made, Err(Error::TemplateBudget { line: Some(_) })), "{source}: {made:?}");
    }
    // Python's numbers have no end; these have, and say so.
    for source in ["{{ 9 ** 9 ** 9 }}", "{{ 2 ** 127 }}", "{{ 10 ** 40 }}", "{{ 2.0 ** 99999 }}"] {
        assert!(matches!(render(source), Err(Error::Template { .. })), "{source}");
    }
    // Just below it is what it should be.
    assert_eq!(render("{{ ('x' * 10**6) | length }}").unwrap(), "1000000");
    assert_eq!(render("{{ '%65537d' % 1 }}").unwrap().len(), 65537);
}

/// Numbers at the ends of what they can be, and values that hold themselves.
#[test]
fn odd_values_are_errors_or_texts() {
    let least = "(-(2**126) - (2**126 - 1) - 1)";
    for source in [
        "{{ LEAST // -1 }}",
        "{{ LEAST % -1 }}",
        "{{ -LEAST }}",
        "{{ LEAST - 1 }}",
        "{{ LEAST | abs }}",
        "{{ LEAST in range(0, 5, -1) }}",
        "{{ range(LEAST, 2**126) }}",
        "{{ range(0, 1, 2**126)[::-1] }}",
        "{{ range(0, 9, 2)[LEAST:2**126:2**126] }}",
        "{{ [1, 2][LEAST] }}",
        "{{ 'ab'[LEAST] }}",
        "{{ 'ab'[LEAST:2**126:LEAST] }}",
        "{{ 'ab'.find('b', LEAST, 2**126) }}",
        "{{ [1].index(1, LEAST) }}",
        "{{ 'a'.split(',', LEAST) }}",
        "{{ 1.5 | round(2**126) }}{{ 1 | round(LEAST) }}",
        "{{ 1e308 * 10 }}{{ (1e308 * 10) | int }}",
        "{{ '%d' % 1e300 }}",
        "{{ '%c' % 1114112 }}{{ '{:c}'.format(-1) }}",
        "{{ LEAST | filesizeformat }}",
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns | string }}{{ ns.x == ns.x }}",
        "{% set ns = namespace() %}{% set ns.x = {'n': ns} %}{{ ns.x | tojson }}",
        "{% for a in [1] %}{{ loop.nextitem.x }}{% endfor %}",
        "{% for a in [[1]] recursive %}{{ loop(a) if a is iterable }}{{ loop([[[1]]]) }}{% endfor %}",
        "{% macro m() %}{{ caller() }}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}\
         {% call m() %}x{% endcall %}",
    ] {
        // Whatever it is, it is no panic.
        match render(&source.replace("LEAST", least)) {
            Ok(_) | Err(Error::Template { .. } | Error::TemplateBudget { .. }) => {}
            Err(error) => panic!("{source}: {error}"),
        }
    }
}
