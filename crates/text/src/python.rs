//! What chat templates take from Python and the interpreter lacks, mended in one place.
//!
//! String literals are rewritten before the template is parsed, since the interpreter knows fewer
//! escapes than Python: a backslash before a line end joins the lines. A literal before `%` becomes
//! a filter that formats. Methods of `str` that the interpreter's own lack are here too.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;
use std::iter::Peekable;
use std::str::Chars;

/// The widest field of a format; also what a method may pad to. What is made is charged to the budget of
/// the render once it exists, as all that a filter or a method gives: this bounds one allocation.
const MAX_WIDTH: usize = 1 << 16;

/// How deep formats are looked for in what is formatted: each level reads the rest of its tag again.
const MAX_NESTED: usize = 16;

fn wrong(rule: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, rule.into())
}

/// The template with line ends as jinja2 reads them, and literals as the interpreter does.
pub(crate) fn rewritten(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = &source[..];
    while let Some(at) = rest.find("{") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'{') => expression(tag, "}}"),
            Some(b'%') => expression(tag, "%}"),
            _ => 1,
        };
        let (tag, after) = tag.split_at(end);
        let code = tag.len() > 1 && !tag.starts_with("{#");
        if code {
            literals(tag, MAX_NESTED, &mut out)
        } else {
            out.push_str(tag)
        }
        rest = after;
        let inner = tag.trim_start_matches(['{', '%', '-', '+']);
        if code && inner.trim_start().starts_with("raw") {
            let end = rest.find("endraw").unwrap_or(rest.len());
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    out
}

/// Where a tag ends, whatever its literals hold.
fn expression(tag: &str, close: &str) -> usize {
    let mut at = 2;
    let mut depth = 0usize;
    while at < tag.len() {
        match tag.as_bytes()[at] {
            b'"' | b'\'' => at += literal(&tag[at..]),
            b'{' => (depth, at) = (depth + 1, at + 1),
            b'}' if depth > 0 => (depth, at) = (depth - 1, at + 1),
            _ if tag.as_bytes()[at..].starts_with(close.as_bytes()) => return at + 2,
            _ => at += 1,
        }
    }
    tag.len()
}

/// Bytes of the literal that a text begins with.
fn literal(text: &str) -> usize {
    let quote = text.as_bytes()[0];
    let mut at = 1;
    while at < text.len() && text.as_bytes()[at] != quote {
        at += if text.as_bytes()[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

/// Writes code with its literals rewritten, and formats within formats so many levels deep.
fn literals(code: &str, levels: usize, out: &mut String) {
    let mut at = 0;
    while at < code.len() {
        if !matches!(code.as_bytes()[at], b'"' | b'\'') {
            let next = code[at..].find(['"', '\'']).map_or(code.len(), |n| at + n);
            out.push_str(&code[at..next]);
            at = next;
            continue;
        }
        let end = at + literal(&code[at..]);
        spelled(&code[at..end], out);
        at = end;
        let gap = code[at..].len() - code[at..].trim_start().len();
        let rest = &code[at + gap..];
        if levels > 0 && rest.starts_with('%') && !rest.starts_with("%}") {
            let begin = at + gap + 1;
            let end = begin + operand(&code[begin..]);
            out.push_str("|percent_format(");
            literals(&code[begin..end], levels - 1, out);
            out.push(')');
            at = end;
        }
    }
}

/// Bytes of what follows an operator and binds tighter than it: a value, its items and filters.
fn operand(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = text.len() - text.trim_start().len();
    let name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'|');
    while let Some(byte) = bytes.get(at) {
        at += match byte {
            b'"' | b'\'' => literal(&text[at..]),
            b'(' | b'[' | b'{' => group(&text[at..]),
            byte if name(byte) => 1,
            b'-' if text[..at].trim().is_empty() => 1,
            _ => break,
        };
    }
    at
}

/// Bytes of a bracketed text.
fn group(text: &str) -> usize {
    let (mut at, mut depth) = (0, 0usize);
    while at < text.len() {
        match text.as_bytes()[at] {
            b'"' | b'\'' => {
                at += literal(&text[at..]);
                continue;
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
        if depth == 0 {
            break;
        }
    }
    at.min(text.len())
}

/// Writes a literal of Python as one of the interpreter.
fn spelled(literal: &str, out: &mut String) {
    let inner = literal.get(1..literal.len() - 1).unwrap_or_default();
    let mut text = String::new();
    let mut chars = inner.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        let Some(c) = chars.next() else { break };
        let digits = match c {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        let number: String = chars.clone().take(digits).collect();
        let code = u32::from_str_radix(&number, 16).ok().and_then(char::from_u32);
        match (c, code) {
            (_, Some(code)) if digits > 0 && number.len() == digits => {
                text.push(code);
                chars.by_ref().take(digits).for_each(drop);
            }
            ('\n', _) => {}
            ('n', _) => text.push('\n'),
            ('t', _) => text.push('\t'),
            ('r', _) => text.push('\r'),
            ('a', _) => text.push('\u{7}'),
            ('b', _) => text.push('\u{8}'),
            ('f', _) => text.push('\u{c}'),
            ('v', _) => text.push('\u{b}'),
            ('\\' | '\'' | '"', _) => text.push(c),
            ('0'..='7', _) => {
                let mut value = c.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = chars.peek().and_then(|c| c.to_digit(8)) else { break };
                    value = value * 8 + digit;
                    chars.next();
                }
                text.extend(char::from_u32(value));
            }
            (c, _) => text.extend(['\\', c]),
        }
    }
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

/// Python's `format % values`.
pub(crate) fn percent_format(format: &str, values: &Value) -> Result<String, Error> {
    let listed = matches!(values.kind(), ValueKind::Seq | ValueKind::Iterable);
    let mut left: Vec<Value> =
        if listed { values.try_iter()?.collect() } else { vec![values.clone()] };
    left.reverse();
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut named = None;
        if chars.next_if_eq(&'(').is_some() {
            let key: String = chars.by_ref().take_while(|c| *c != ')').collect();
            named = Some(values.get_item(&Value::from(key))?);
        }
        let (mut minus, mut zero, mut plus, mut width, mut precision) = (false, false, "", 0, None);
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '0' | '+' | ' ' | '#')) {
            match flag {
                '-' => minus = true,
                '0' => zero = true,
                '+' => plus = "+",
                _ => {}
            }
        }
        width += number(&mut chars, MAX_WIDTH)?;
        if chars.next_if_eq(&'.').is_some() {
            precision = Some(number(&mut chars, 100)?);
        }
        let kind = chars.next().ok_or_else(|| wrong("incomplete format"))?;
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = named.or_else(|| left.pop());
        let value = value.ok_or_else(|| wrong("not enough arguments for format string"))?;
        let text = field(&value, kind, precision, plus)?;
        let fill = width.saturating_sub(text.chars().count());
        if zero && !minus && kind != 's' {
            let signs = text.len() - text.trim_start_matches(['-', '+']).len();
            out += &format!("{}{}{}", &text[..signs], "0".repeat(fill), &text[signs..]);
        } else if minus {
            out += &(text + &" ".repeat(fill));
        } else {
            out += &(" ".repeat(fill) + &text);
        }
        if out.len() > MAX_WIDTH * 16 {
            return Err(wrong("what is formatted is too long"));
        }
    }
    if listed && !left.is_empty() {
        return Err(wrong("not all arguments converted during string formatting"));
    }
    Ok(out)
}

/// The digits that come next.
fn number(chars: &mut Peekable<Chars<'_>>, limit: usize) -> Result<usize, Error> {
    let mut value = 0usize;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        value = value * 10 + digit as usize;
        if value > limit {
            return Err(wrong(format!("a width or precision of a format is above {limit}")));
        }
        chars.next();
    }
    Ok(value)
}

fn field(value: &Value, kind: char, digits: Option<usize>, plus: &str) -> Result<String, Error> {
    let needed = || wrong(format!("%{kind} format: a real number is required"));
    let signed = |text: String| if text.starts_with('-') { text } else { format!("{plus}{text}") };
    let whole = || -> Result<i128, Error> {
        i128::try_from(value.clone())
            .or_else(|_| f64::try_from(value.clone()).map(|v| v.trunc() as i128))
            .map_err(|_| needed())
    };
    Ok(match kind {
        's' => {
            let text = printed(value).unwrap_or_else(|| value.to_string());
            text.chars().take(digits.unwrap_or(usize::MAX)).collect()
        }
        'd' | 'i' | 'u' => signed(whole()?.to_string()),
        'x' => signed(format!("{:x}", whole()?)),
        'X' => signed(format!("{:X}", whole()?)),
        'o' => signed(format!("{:o}", whole()?)),
        'f' | 'F' => {
            let number = f64::try_from(value.clone()).map_err(|_| needed())?;
            signed(format!("{number:.*}", digits.unwrap_or(6)))
        }
        _ => return Err(wrong(format!("%{kind} is not known here"))),
    })
}

/// What Python prints otherwise than the interpreter.
pub(crate) fn printed(value: &Value) -> Option<String> {
    match value.kind() {
        ValueKind::None => Some("None".into()),
        ValueKind::Bool => Some(if value.is_true() { "True" } else { "False" }.into()),
        ValueKind::Number if !value.is_integer() => {
            let number = f64::try_from(value.clone()).ok()?;
            let text = crate::pyjson::float(number);
            Some(text.replace("Infinity", "inf").replace("NaN", "nan"))
        }
        _ => None,
    }
}

/// Methods of Python that values have: those here, then the interpreter's own.
pub(crate) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match value.as_str().map(|text| string(text, name, args)) {
        Some(Ok(Some(made))) => Ok(made),
        Some(Err(error)) => Err(error),
        _ => unknown_method_callback(state, value, name, args),
    }
}

fn string(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let word = |i: usize| args.get(i).and_then(Value::as_str);
    let first = || word(0).ok_or_else(|| wrong(format!("{name}: a string is required")));
    let list = |parts: [&str; 3]| Value::from(parts.map(String::from).to_vec());
    let three = |found: Option<(&str, &str)>, last: bool, sep: &str| match found {
        Some((a, b)) => list([a, sep, b]),
        None if last => list(["", "", text]),
        None => list([text, "", ""]),
    };
    Ok(Some(match name {
        "partition" => three(text.split_once(first()?), false, first()?),
        "rpartition" => three(text.rsplit_once(first()?), true, first()?),
        "removeprefix" => Value::from(text.strip_prefix(first()?).unwrap_or(text)),
        "removesuffix" => Value::from(text.strip_suffix(first()?).unwrap_or(text)),
        "index" => {
            let at = text.find(first()?).ok_or_else(|| wrong("substring not found"))?;
            Value::from(text[..at].chars().count())
        }
        "rsplit" => Value::from(rsplit(text, word(0), args.get(1).and_then(Value::as_i64))),
        "zfill" | "ljust" | "rjust" | "center" => {
            let width = args.first().and_then(Value::as_i64);
            let width = width.ok_or_else(|| wrong(format!("{name}: a width is required")))?;
            let width = usize::try_from(width).unwrap_or(0);
            if width > MAX_WIDTH {
                return Err(wrong(format!("{name}: a width above {MAX_WIDTH}")));
            }
            let fill = width.saturating_sub(text.chars().count());
            let with = word(1).unwrap_or(" ");
            if with.chars().count() != 1 {
                return Err(wrong(format!("{name}: the fill must be one character")));
            }
            let pad = |n: usize| with.repeat(n);
            Value::from(match name {
                "zfill" => {
                    let signs = usize::from(text.starts_with(['-', '+']));
                    format!("{}{}{}", &text[..signs], "0".repeat(fill), &text[signs..])
                }
                "ljust" => format!("{text}{}", pad(fill)),
                "rjust" => format!("{}{text}", pad(fill)),
                _ => {
                    let left = fill / 2 + (fill & width & 1);
                    format!("{}{text}{}", pad(left), pad(fill - left))
                }
            })
        }
        _ => return Ok(None),
    }))
}

fn rsplit(text: &str, separator: Option<&str>, most: Option<i64>) -> Vec<String> {
    let most = most.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = Vec::new();
    if let Some(separator) = separator {
        parts.extend(text.rsplitn(most + 1, separator));
    } else {
        let mut rest = text.trim_end();
        while !rest.is_empty() {
            let cut = rest.rfind(char::is_whitespace).filter(|_| parts.len() < most);
            let after =
                cut.map_or(0, |at| at + rest[at..].chars().next().map_or(0, char::len_utf8));
            parts.push(&rest[after..]);
            rest = cut.map_or("", |at| rest[..at].trim_end());
        }
    }
    parts.iter().rev().map(ToString::to_string).collect()
}
