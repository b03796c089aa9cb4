//! The `pprint` filter: Python's `pprint.pformat`, 80 columns wide, the keys of maps in order.

use super::heap::Heap;
use super::value::{Map, Text, Value};
use super::{Result, ops, strings};

const WIDTH: usize = 80;

/// The value over as many lines as it takes.
pub(super) fn printed(heap: &Heap, value: &Value) -> Result<String> {
    let value = in_order(heap, value)?;
    let mut out = String::new();
    write(heap, &value, &mut out, At { column: 0, kept: 0 }, 1)?;
    Ok(out)
}

/// The value with its maps by key.
fn in_order(heap: &Heap, value: &Value) -> Result<Value> {
    heap.step(1)?;
    match value {
        Value::List(items) => {
            let values = items.values.iter().map(|value| in_order(heap, value));
            heap.list(values.collect::<Result<_>>()?)
        }
        Value::Tuple(items) => {
            let values = items.values.iter().map(|value| in_order(heap, value));
            heap.tuple(values.collect::<Result<_>>()?)
        }
        Value::Map(map) => {
            let mut all = Vec::new();
            for (key, value) in &map.entries {
                let pair = heap.tuple(vec![key.clone(), in_order(heap, value)?])?;
                all.push((key.clone(), pair));
            }
            let pairs = ops::sorted(heap, all, false)?;
            let pair = |pair: &Value| match pair.items() {
                Some([key, value]) => Some((key.clone(), value.clone())),
                _ => None,
            };
            heap.map(pairs.iter().filter_map(pair).collect())
        }
        _ => Ok(value.clone()),
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// Where a value is written.
#[derive(Clone, Copy)]
struct At {
    /// Where it begins.
    column: usize,
    /// Columns that are kept for what follows it.
    kept: usize,
}

impl At {
    /// So many columns further in, on both sides.
    fn within(self, before: usize, after: usize) -> Self {
        Self { column: self.column + before, kept: self.kept + after }
    }
}

/// Writes a value.
fn write(heap: &Heap, value: &Value, out: &mut String, at: At, level: usize) -> Result<()> {
    let shown = heap.shown(value)?;
    heap.bytes(shown.len() + at.column)?;
    if width(&shown) + at.column + at.kept <= WIDTH {
        out.push_str(&shown);
        return Ok(());
    }
    match value {
        Value::Text(text) if !text.safe => texts(heap, text, out, at, level)?,
        Value::List(items) => {
            out.push('[');
            list(heap, &items.values, out, at.within(1, 1), level)?;
            out.push(']');
        }
        Value::Tuple(items) => {
            let end = if items.values.len() == 1 { ",)" } else { ")" };
            out.push('(');
            list(heap, &items.values, out, at.within(1, end.len()), level)?;
            out.push_str(end);
        }
        Value::Map(map) => {
            out.push('{');
            pairs(heap, map, out, at.within(1, 1), level)?;
            out.push('}');
        }
        _ => out.push_str(&shown),
    }
    Ok(())
}

fn next_line(out: &mut String, column: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', column));
}

fn list(heap: &Heap, values: &[Value], out: &mut String, at: At, level: usize) -> Result<()> {
    for (i, value) in values.iter().enumerate() {
        if i > 0 {
            out.push(',');
            next_line(out, at.column);
        }
        let kept = if i + 1 == values.len() { at.kept } else { 1 };
        write(heap, value, out, At { kept, ..at }, level + 1)?;
    }
    Ok(())
}

fn pairs(heap: &Heap, map: &Map, out: &mut String, at: At, level: usize) -> Result<()> {
    for (i, (key, value)) in map.entries.iter().enumerate() {
        if i > 0 {
            out.push(',');
            next_line(out, at.column);
        }
        let key = heap.shown(key)?;
        out.push_str(&key);
        out.push_str(": ");
        let kept = if i + 1 == map.entries.len() { at.kept } else { 1 };
        let column = at.column + width(&key) + 2;
        write(heap, value, out, At { column, kept }, level + 1)?;
    }
    Ok(())
}

/// A long string: lines apart, and words where a line is too long.
fn texts(heap: &Heap, text: &Text, out: &mut String, at: At, level: usize) -> Result<()> {
    let At { column, kept } = if level == 1 { at.within(1, 1) } else { at };
    let room = WIDTH.saturating_sub(column);
    let lines = strings::lines(&text.text, true);
    let mut chunks: Vec<String> = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let last = i + 1 == lines.len();
        let shown = heap.shown(&(*line).into())?;
        if width(&shown) <= room.saturating_sub(if last { kept } else { 0 }) {
            chunks.push(shown);
            continue;
        }
        let mut current = String::new();
        let parts = words(line);
        for (j, part) in parts.iter().enumerate() {
            let candidate = format!("{current}{part}");
            let ends = last && j + 1 == parts.len();
            let room = room.saturating_sub(if ends { kept } else { 0 });
            if width(&heap.shown(&candidate.as_str().into())?) > room {
                if !current.is_empty() {
                    chunks.push(heap.shown(&current.into())?);
                }
                current = (*part).to_owned();
            } else {
                current = candidate;
            }
        }
        if !current.is_empty() {
            chunks.push(heap.shown(&current.into())?);
        }
    }
    let bracketed = level == 1 && chunks.len() > 1;
    out.push_str(if bracketed { "(" } else { "" });
    for (i, chunk) in chunks.iter().enumerate() {
        heap.bytes(chunk.len() + column)?;
        if i > 0 {
            next_line(out, column);
        }
        out.push_str(chunk);
    }
    out.push_str(if bracketed { ")" } else { "" });
    Ok(())
}

/// Words, each with the white space after it.
fn words(line: &str) -> Vec<&str> {
    use super::lexer::is_space;
    let mut all = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let word = rest.find(is_space).unwrap_or(rest.len());
        let space = rest[word..].find(|c| !is_space(c)).map_or(rest.len(), |n| word + n);
        let (part, after) = rest.split_at(space);
        all.push(part);
        rest = after;
    }
    all
}
