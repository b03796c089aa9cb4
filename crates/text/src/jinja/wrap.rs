//! The `wordwrap` filter: Python's `textwrap.wrap`, a paragraph at a time.

use super::call::{Args, count, string};
use super::heap::Heap;
use super::value::Value;
use super::{Error, Result, strings};

/// The white space that `textwrap` knows.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\u{b}' | '\u{c}' | '\r')
}

pub(super) fn wordwrap(heap: &Heap, value: &Value, args: Args) -> Result<Value> {
    let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
    let [width, long, with, hyphens] = args.bind("wordwrap", names)?;
    value.defined()?;
    let text = string(value, "wordwrap")?;
    let width = count(width.as_ref(), 79)?;
    if width == 0 {
        return Err(Error::failed("invalid width 0 (must be > 0)"));
    }
    let long = long.is_none_or(|l| l.is_true());
    let hyphens = hyphens.is_none_or(|h| h.is_true());
    let with = with.filter(|w| !w.is_none()).unwrap_or_else(|| "\n".into());
    let with = string(&with, "wordwrap")?;
    heap.step(text.len().saturating_mul(2))?;
    let mut lines = Vec::new();
    for line in strings::lines(text, false) {
        let wrapped = wrapped(line, width, long, hyphens);
        // A paragraph without words is a line all the same.
        lines.push(wrapped.join(with));
    }
    heap.bytes(lines.len().saturating_mul(with.len()).saturating_add(text.len()))?;
    Ok(lines.join(with).into())
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn wrapped(text: &str, width: usize, long: bool, hyphens: bool) -> Vec<String> {
    let mut chunks = chunks(text, hyphens);
    chunks.reverse();
    let mut lines: Vec<String> = Vec::new();
    while let Some(last) = chunks.last() {
        if !lines.is_empty() && last.chars().all(is_blank) {
            chunks.pop();
        }
        let mut line: Vec<&str> = Vec::new();
        let mut used = 0;
        while let Some(chunk) = chunks.last() {
            if used + length(chunk) > width {
                break;
            }
            used += length(chunk);
            line.extend(chunks.pop());
        }
        if let Some(chunk) = chunks.last().copied().filter(|chunk| length(chunk) > width) {
            if long {
                let at = cut(chunk, width.saturating_sub(used).max(1), hyphens);
                let (now, later) = chunk.split_at(at);
                line.push(now);
                chunks.pop();
                chunks.push(later);
            } else if line.is_empty() {
                line.extend(chunks.pop());
            }
        }
        if line.last().is_some_and(|chunk| chunk.chars().all(is_blank)) {
            line.pop();
        }
        if !line.is_empty() {
            lines.push(line.concat());
        }
    }
    lines
}

/// Where a word too long for a line is cut: after a hyphen if there is one in time.
fn cut(chunk: &str, room: usize, hyphens: bool) -> usize {
    let end = chunk.char_indices().nth(room).map_or(chunk.len(), |(at, _)| at);
    if hyphens
        && let Some(at) = chunk[..end].rfind('-').filter(|at| *at > 0)
        && chunk[..at].contains(|c| c != '-')
    {
        return at + 1;
    }
    end
}

/// Words and the white space between them; words are cut after hyphens between letters.
fn chunks(text: &str, hyphens: bool) -> Vec<&str> {
    let mut all = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let blank = is_blank(first);
        let end = rest.find(|c| is_blank(c) != blank).unwrap_or(rest.len());
        let (chunk, after) = rest.split_at(end);
        rest = after;
        if blank || !hyphens {
            all.push(chunk);
        } else {
            hyphenated(chunk, &mut all);
        }
    }
    all
}

fn hyphenated<'t>(word: &'t str, all: &mut Vec<&'t str>) {
    let chars: Vec<(usize, char)> = word.char_indices().collect();
    let at = |i: usize| chars.get(i).map(|(_, c)| *c);
    let letter = |i: Option<usize>| {
        i.and_then(at).is_some_and(|c| c == '_' || (c.is_alphanumeric() && !c.is_numeric()))
    };
    let mut begin = 0;
    for (i, (byte, c)) in chars.iter().enumerate() {
        // Two letters before it, or a letter and a hyphen; two after it, or a letter and one.
        let before = letter(i.checked_sub(1))
            && (letter(i.checked_sub(2)) || i.checked_sub(2).and_then(at) == Some('-'));
        let after = letter(Some(i + 1)) && (letter(Some(i + 2)) || at(i + 2) == Some('-'));
        if *c == '-' && before && after {
            all.push(&word[begin..byte + 1]);
            begin = byte + 1;
        }
    }
    if begin < word.len() {
        all.push(&word[begin..]);
    }
}
