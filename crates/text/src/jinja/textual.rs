//! Filters of texts.

use super::call::{Args, count, needed, string, whole};
use super::heap::Heap;
use super::lexer::is_space;
use super::strings::{self, made_safe, soft};
use super::value::{Text, Value};
use super::{Error, Result, format, ops, wrap};

/// What a filter makes of a value; `None` if it is not one of a text.
pub(super) fn filter(heap: &Heap, name: &str, value: &Value, args: Args) -> Result<Option<Value>> {
    if matches!(name, "upper" | "lower" | "capitalize" | "title" | "string" | "wordcount") {
        let [] = args.in_order(name)?;
        return spelled(heap, name, value).map(Some);
    }
    Ok(Some(match name {
        "trim" => {
            let [chars] = args.bind(name, ["chars"])?;
            let text = soft(heap, value)?;
            heap.bytes(text.text.len())?;
            let chars = chars.filter(|c| !c.is_none());
            let chars = chars.as_ref().map(|c| string(c, name)).transpose()?;
            let made = strings::stripped(heap, &text.text, "strip", chars)?;
            Value::Text(Text { text: made.into(), safe: text.safe })
        }
        "replace" => {
            let [old, new, most] = args.bind(name, ["old", "new", "count"])?;
            let most = most.filter(|m| !m.is_none());
            let (old, new) = (needed(old, name)?, needed(new, name)?);
            let (text, old, new) = (heap.text(value)?, heap.text(&old)?, heap.text(&new)?);
            strings::replaced(heap, &text, &old, &new, whole(most.as_ref(), -1)?)?.into()
        }
        "safe" => Value::safe(heap.text(value)?.to_string()),
        "escape" | "e" => Value::safe(made_safe(heap, value)?),
        "forceescape" => Value::safe(ops::escaped(heap, &heap.text(value)?)?),
        "center" => {
            let [width] = args.bind(name, ["width"])?;
            let text = soft(heap, value)?;
            strings::centered(heap, &text.text, count(width.as_ref(), 80)?, " ")?.into()
        }
        "format" => {
            let text = soft(heap, value)?;
            if !args.positional.is_empty() && !args.named.is_empty() {
                let rule = "can't handle positional and keyword arguments at the same time";
                return Err(Error::failed(rule));
            }
            let values = match args.named.is_empty() {
                true => heap.tuple(args.positional)?,
                false => {
                    let named = args.named.into_iter();
                    heap.map(named.map(|(name, value)| ((&*name).into(), value)).collect())?
                }
            };
            Value::Text(Text {
                text: format::percent(heap, &text, &values)?.into(),
                safe: text.safe,
            })
        }
        "indent" => indented(heap, value, args)?,
        "truncate" => truncated(heap, value, args)?,
        "wordwrap" => wrap::wordwrap(heap, value, args)?,
        "striptags" => striptags(heap, &heap.text(value)?)?.into(),
        "xmlattr" => attributes(heap, value, args)?,
        "urlencode" => match value {
            Value::Text(_) | Value::None | Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
                url_quoted(heap, value, false)?.into()
            }
            _ => return Ok(None),
        },
        _ => return Ok(None),
    }))
}

fn spelled(heap: &Heap, name: &str, value: &Value) -> Result<Value> {
    let text = soft(heap, value)?;
    heap.bytes(text.text.len().saturating_mul(if name == "title" { 8 } else { 1 }))?;
    let made = match name {
        "upper" => text.text.to_uppercase(),
        "lower" => text.text.to_lowercase(),
        "capitalize" => strings::capitalized(&text.text),
        "title" => {
            let breaks = |c: char| is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
            let mut made = String::new();
            for word in text.text.split_inclusive(breaks) {
                let end = word.find(breaks).unwrap_or(word.len());
                let mut chars = word[..end].chars();
                made.extend(chars.next().into_iter().flat_map(char::to_uppercase));
                made.push_str(&chars.as_str().to_lowercase());
                made.push_str(&word[end..]);
            }
            made
        }
        "wordcount" => {
            let within = |c: char| c.is_alphanumeric() || c == '_';
            let words = text.text.split(|c| !within(c)).filter(|word| !word.is_empty());
            return Ok(Value::Integer(words.count() as i128));
        }
        _ => return Ok(Value::Text(text)),
    };
    // A join of parts is not safe any more, as there.
    Ok(Value::Text(Text { text: made.into(), safe: text.safe && name != "title" }))
}

fn indented(heap: &Heap, value: &Value, args: Args) -> Result<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
    value.defined()?;
    let text = string(value, "indent")?;
    let indent = match &width {
        Some(Value::Text(indent)) => indent.text.to_string(),
        width => heap.repeated(" ", count(width.as_ref(), 4)?)?,
    };
    let (first, blank) = (first.is_some_and(|f| f.is_true()), blank.is_some_and(|b| b.is_true()));
    // Each line may take an indent, and a place in the list of lines.
    heap.step(text.len() / 16)?;
    let text = format!("{text}\n");
    let lines = strings::lines(&text, false);
    heap.bytes(lines.len().saturating_mul(indent.len() + 1).saturating_add(text.len()))?;
    let mut made = String::new();
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            made.push('\n');
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            made.push_str(&indent);
        }
        made.push_str(line);
    }
    Ok(made.into())
}

fn truncated(heap: &Heap, value: &Value, args: Args) -> Result<Value> {
    let names = ["length", "killwords", "end", "leeway"];
    let [length, kills, end, leeway] = args.bind("truncate", names)?;
    let end = end.unwrap_or_else(|| "...".into());
    let end = string(&end, "truncate")?;
    let leeway = leeway.filter(|l| !l.is_none());
    let (length, leeway) = (count(length.as_ref(), 255)?, count(leeway.as_ref(), 5)?);
    let ending = end.chars().count();
    if length < ending {
        return Err(Error::failed(format!("expected length >= {ending}, got {length}")));
    }
    // What has a length and is short enough is left as it is.
    let short = |count: usize| count <= length.saturating_add(leeway);
    let text = match value {
        Value::Undefined(_) => return Ok(value.clone()),
        Value::List(items) | Value::Tuple(items) if short(items.values.len()) => {
            return Ok(value.clone());
        }
        Value::Map(map) if short(map.len()) => return Ok(value.clone()),
        Value::Range(range) if short(range.len()) => return Ok(value.clone()),
        _ => string(value, "truncate")?,
    };
    heap.bytes(text.len())?;
    if short(text.chars().count()) {
        return Ok(value.clone());
    }
    let cut: String = text.chars().take(length - ending).collect();
    let kept = match kills.is_some_and(|k| k.is_true()) {
        true => &cut[..],
        false => cut.rsplit_once(' ').map_or(&cut[..], |(before, _)| before),
    };
    Ok(format!("{kept}{end}").into())
}

fn striptags(heap: &Heap, text: &str) -> Result<String> {
    heap.bytes(text.len())?;
    let mut made = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        let tag = &rest[at..];
        let end = match tag.strip_prefix("<!--") {
            Some(comment) => comment.find("-->").map(|end| at + 4 + end + 3),
            None => tag.find('>').map(|end| at + end + 1),
        };
        let Some(end) = end else { break };
        made.push_str(&rest[..at]);
        rest = &rest[end..];
    }
    made.push_str(rest);
    let joined: Vec<&str> = made.split(is_space).filter(|word| !word.is_empty()).collect();
    Ok(unescaped(&joined.join(" ")))
}

/// The text with its entities as characters: the usual ones by name, all by number.
fn unescaped(text: &str) -> String {
    const NAMED: [(&str, &str); 7] = [
        ("amp", "&"),
        ("lt", "<"),
        ("gt", ">"),
        ("quot", "\""),
        ("apos", "'"),
        ("nbsp", "\u{a0}"),
        ("raquo", "\u{bb}"),
    ];
    let mut made = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        made.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let found = after.find(';').and_then(|end| {
            let name = &after[..end];
            let code =
                name.strip_prefix('#').and_then(|code| match code.strip_prefix(['x', 'X']) {
                    Some(code) => u32::from_str_radix(code, 16).ok(),
                    None => code.parse().ok(),
                });
            let code = code.and_then(char::from_u32).map(String::from);
            let named = NAMED.iter().find(|(known, _)| *known == name);
            let text = code.or_else(|| named.map(|(_, text)| (*text).to_owned()))?;
            Some((text, &after[end + 1..]))
        });
        match found {
            Some((text, after)) => {
                made.push_str(&text);
                rest = after;
            }
            None => {
                made.push('&');
                rest = after;
            }
        }
    }
    made.push_str(rest);
    made
}

fn attributes(heap: &Heap, value: &Value, args: Args) -> Result<Value> {
    let [space] = args.bind("xmlattr", ["autospace"])?;
    value.defined()?;
    let Value::Map(map) = value else {
        let rule = format!("'{}' object has no attribute 'items'", value.kind());
        return Err(Error::failed(rule));
    };
    let mut all = Vec::new();
    for (key, value) in &map.entries {
        if value.is_none() || value.is_undefined() {
            continue;
        }
        let name = string(key, "xmlattr")?;
        if name
            .contains(|c: char| c.is_ascii_whitespace() || matches!(c, '/' | '>' | '=' | '\u{b}'))
        {
            let name = heap.shown(key)?;
            return Err(Error::failed(format!("Invalid character in attribute name: {name}")));
        }
        all.push(format!("{}=\"{}\"", made_safe(heap, key)?, made_safe(heap, value)?));
    }
    let lead = !all.is_empty() && space.is_none_or(|s| s.is_true());
    Ok(format!("{}{}", if lead { " " } else { "" }, all.join(" ")).into())
}

/// A value as a part of an address; `query` is what follows the question mark.
pub(super) fn url_quoted(heap: &Heap, value: &Value, query: bool) -> Result<String> {
    let text = heap.text(value)?;
    heap.bytes(text.len().saturating_mul(3))?;
    let mut made = String::new();
    for byte in text.bytes() {
        match byte {
            b'/' if !query => made.push('/'),
            b' ' if query => made.push('+'),
            b if b.is_ascii_alphanumeric() || b"_.-~".contains(&b) => made.push(char::from(b)),
            b => made.push_str(&format!("%{b:02X}")),
        }
    }
    Ok(made)
}
