//! Filters of jinja2: those of sequences, maps and numbers, and which there are.

use super::ast::{Comparison, Operator};
use super::call::{Args, count, needed, string, whole};
use super::heap::{Heap, Object};
use super::interpreter::Interpreter;
use super::value::{Text, Value};
use super::{Error, Result, is, ops, pretty, pyjson, textual};
use std::collections::HashSet;

/// All that are known here. jinja2 has two more that say so: `random` and `urlize`.
const NAMES: [&str; 54] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
    "wordwrap",
    "xmlattr",
    "pprint",
    // These are jinja2's and are refused where they are used.
    "random",
    "urlize",
];

/// Filters that give what can be gone through once, made when it is.
const LAZY: [&str; 9] =
    ["batch", "items", "map", "reject", "rejectattr", "select", "selectattr", "slice", "unique"];

pub(super) fn is_known(name: &str) -> bool {
    NAMES.contains(&name)
}

impl Interpreter<'_> {
    pub(super) fn filter(&mut self, name: &str, value: &Value, args: Args) -> Result<Value> {
        self.heap.step(1)?;
        if let Some(lazy) = LAZY.iter().find(|lazy| **lazy == name) {
            return self.heap.object(Object::Pending(lazy, value.clone(), args));
        }
        match name {
            "default" | "d" => {
                let [otherwise, boolean] = args.bind(name, ["default_value", "boolean"])?;
                let boolean = boolean.is_some_and(|b| b.is_true());
                let lacks = value.is_undefined() || (boolean && !value.is_true());
                Ok(if lacks { otherwise.unwrap_or_else(|| "".into()) } else { value.clone() })
            }
            "length" | "count" => {
                let [] = args.in_order(name)?;
                self.length_of(value).map(|n| Value::Integer(n as i128))
            }
            "list" => {
                let [] = args.in_order(name)?;
                let items = self.iterate(value)?;
                self.heap.list(items)
            }
            "first" | "last" => {
                let [] = args.in_order(name)?;
                self.end(value, name == "last")
            }
            "join" => self.joined(value, args),
            "sort" => self.sorted(value, args),
            "min" | "max" => self.extreme(value, name, args),
            "sum" => self.summed(value, args),
            "groupby" => self.grouped(value, args),
            "dictsort" => self.map_sorted(value, args),
            "reverse" => {
                let [] = args.in_order(name)?;
                self.reversed(value)
            }
            "attr" => {
                let [attribute] = args.bind(name, ["name"])?;
                let attribute = needed(attribute, name)?;
                let attribute = string(&attribute, name)?;
                match value {
                    // A key is no attribute.
                    Value::Map(_) if super::methods::of(value, attribute).is_none() => {
                        Ok(Value::undefined(format!("no attribute '{attribute}'")))
                    }
                    _ => self.attribute(value, attribute),
                }
            }
            "pprint" => {
                let [] = args.in_order(name)?;
                pretty::printed(&self.heap, value).map(Value::from)
            }
            "tojson" => pyjson::dumped(&self.heap, value, args).map(Value::from),
            "abs" | "int" | "float" | "round" | "filesizeformat" => {
                number(&self.heap, value, name, args)
            }
            _ => match textual::filter(&self.heap, name, value, args)? {
                Some(made) => Ok(made),
                None => self.of_pairs(name, value),
            },
        }
    }

    fn of_pairs(&mut self, name: &str, value: &Value) -> Result<Value> {
        match name {
            "urlencode" => {
                let pairs = match value {
                    Value::Map(map) => map.viewed(super::value::View::Items, &self.heap)?,
                    value => self.iterate(value)?,
                };
                let mut all = Vec::new();
                for pair in pairs {
                    let pair = self.iterate(&pair)?;
                    let [key, value] = &pair[..] else {
                        return Err(Error::failed("urlencode: a pair is required"));
                    };
                    let part = |v: &Value| textual::url_quoted(&self.heap, v, true);
                    all.push(format!("{}={}", part(key)?, part(value)?));
                }
                Ok(all.join("&").into())
            }
            _ => Err(Error::failed(format!("the filter {name} is not known here"))),
        }
    }

    fn length_of(&mut self, value: &Value) -> Result<usize> {
        Ok(match value {
            Value::Undefined(_) => 0,
            Value::Text(text) => {
                self.heap.step(1 + text.text.len() / 256)?;
                text.text.chars().count()
            }
            Value::List(items) | Value::Tuple(items) => items.values.len(),
            Value::Map(map) | Value::View(_, map) => map.len(),
            Value::Range(range) => range.len(),
            Value::Loop(_) => {
                let length = self.attribute(value, "length")?;
                count(Some(&length), 0)?
            }
            _ => {
                let kind = value.kind();
                return Err(Error::failed(format!("object of type '{kind}' has no len()")));
            }
        })
    }

    fn end(&mut self, value: &Value, last: bool) -> Result<Value> {
        let is_iterator = matches!(value, Value::Object(_));
        if last && is_iterator {
            return Err(Error::failed("'generator' object is not reversible"));
        }
        let mut items = self.iterate(value)?;
        let found = match last {
            true => items.pop(),
            false if items.is_empty() => None,
            false => Some(items.remove(0)),
        };
        // Only the first one is used up.
        if let Value::Object(id) = value
            && let Some(object) = self.heap.objects.get_mut(*id)
        {
            *object = Object::Iterator(items);
        }
        let word = if last { "last" } else { "first" };
        let none = || Value::undefined(format!("No {word} item, sequence was empty."));
        Ok(found.unwrap_or_else(none))
    }

    fn reversed(&mut self, value: &Value) -> Result<Value> {
        if let Value::Text(text) = value {
            self.heap.bytes(text.text.len())?;
            let made: String = text.text.chars().rev().collect();
            return Ok(Value::Text(Text { text: made.into(), safe: text.safe }));
        }
        let mut items = self.iterate(value)?;
        items.reverse();
        match value {
            Value::Object(_) => self.heap.list(items),
            _ => self.heap.iterator(items),
        }
    }

    /// The value at a path: an index, or names and indices with points between them.
    fn at(&mut self, item: &Value, path: &[Value], otherwise: Option<&Value>) -> Result<Value> {
        let mut item = item.clone();
        for part in path {
            item = self.item(&item, part)?;
            if let Some(otherwise) = otherwise
                && item.is_undefined()
            {
                item = otherwise.clone();
            }
        }
        Ok(item)
    }

    /// What values are sorted by: at the path, without case unless that counts.
    fn by(&mut self, item: &Value, path: &[Value], case: bool) -> Result<Value> {
        let found = self.at(item, path, None)?;
        self.folded(found, case)
    }

    fn folded(&self, value: Value, case: bool) -> Result<Value> {
        match &value {
            Value::Text(text) if !case => {
                self.heap.bytes(text.text.len())?;
                Ok(text.text.to_lowercase().into())
            }
            _ => Ok(value),
        }
    }

    fn joined(&mut self, value: &Value, args: Args) -> Result<Value> {
        let [separator, attribute] = args.bind("join", ["d", "attribute"])?;
        let path = path(attribute.as_ref());
        let separator = match separator {
            Some(separator) => self.heap.text(&separator)?,
            None => "".into(),
        };
        let mut made = String::new();
        for (i, item) in self.iterate(value)?.iter().enumerate() {
            if i > 0 {
                self.heap.bytes(separator.len())?;
                made.push_str(&separator);
            }
            let item = self.at(item, &path, None)?;
            self.heap.print(&item, &mut made)?;
        }
        Ok(made.into())
    }

    fn sorted(&mut self, value: &Value, args: Args) -> Result<Value> {
        let names = ["reverse", "case_sensitive", "attribute"];
        let [reverse, case, attribute] = args.bind("sort", names)?;
        let case = case.is_some_and(|c| c.is_true());
        let paths: Vec<Vec<Value>> = match attribute.as_ref().and_then(Value::text) {
            Some(all) => all.split(',').map(|one| path(Some(&one.into()))).collect(),
            None => vec![path(attribute.as_ref())],
        };
        let mut all = Vec::new();
        for item in self.iterate(value)? {
            let mut keys = Vec::with_capacity(paths.len());
            for path in &paths {
                keys.push(self.by(&item, path, case)?);
            }
            all.push((self.heap.list(keys)?, item));
        }
        let all = ops::sorted(&self.heap, all, reverse.is_some_and(|r| r.is_true()))?;
        self.heap.list(all)
    }

    fn extreme(&mut self, value: &Value, name: &str, args: Args) -> Result<Value> {
        let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
        let case = case.is_some_and(|c| c.is_true());
        let path = path(attribute.as_ref());
        let comparison = if name == "min" { Comparison::Less } else { Comparison::Greater };
        let mut best: Option<(Value, Value)> = None;
        for item in self.iterate(value)? {
            let key = self.by(&item, &path, case)?;
            let better = match &best {
                Some((known, _)) => ops::compare(&self.heap, comparison, &key, known)?,
                None => true,
            };
            if better {
                best = Some((key, item));
            }
        }
        let none = || Value::undefined("No aggregated item, sequence was empty.");
        Ok(best.map_or_else(none, |(_, item)| item))
    }

    fn summed(&mut self, value: &Value, args: Args) -> Result<Value> {
        let [attribute, start] = args.bind("sum", ["attribute", "start"])?;
        let path = path(attribute.as_ref());
        let mut sum = start.unwrap_or(Value::Integer(0));
        if sum.text().is_some() {
            return Err(Error::failed("sum() can't sum strings [use ''.join(seq) instead]"));
        }
        for item in self.iterate(value)? {
            let item = self.at(&item, &path, None)?;
            sum = ops::binary(&self.heap, Operator::Add, &sum, &item)?;
        }
        Ok(sum)
    }

    fn grouped(&mut self, value: &Value, args: Args) -> Result<Value> {
        let names = ["attribute", "default", "case_sensitive"];
        let [attribute, otherwise, case] = args.bind("groupby", names)?;
        let path = path(Some(&needed(attribute, "groupby")?));
        let otherwise = otherwise.filter(|o| !o.is_none());
        let case = case.is_some_and(|c| c.is_true());
        let mut all = Vec::new();
        for item in self.iterate(value)? {
            let key = self.at(&item, &path, otherwise.as_ref())?;
            let folded = self.folded(key.clone(), case)?;
            all.push((folded.clone(), self.heap.tuple(vec![folded, key, item])?));
        }
        let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
        for entry in ops::sorted(&self.heap, all, false)? {
            let Some([folded, key, item]) = entry.items() else { continue };
            match groups.last_mut() {
                Some((known, _, items)) if ops::equal(&self.heap, known, folded)? => {
                    items.push(item.clone());
                }
                _ => groups.push((folded.clone(), key.clone(), vec![item.clone()])),
            }
        }
        let groups = groups.into_iter().map(|(_, key, items)| self.heap.group(key, items));
        self.heap.list(groups.collect::<Result<_>>()?)
    }

    fn map_sorted(&mut self, value: &Value, args: Args) -> Result<Value> {
        let [case, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
        let case = case.is_some_and(|c| c.is_true());
        let by = by.unwrap_or_else(|| "key".into());
        let at = match string(&by, "dictsort")? {
            "key" => 0,
            "value" => 1,
            _ => return Err(Error::failed("You can only sort by either \"key\" or \"value\"")),
        };
        let Value::Map(map) = value else {
            value.defined()?;
            let rule = format!("'{}' object has no attribute 'items'", value.kind());
            return Err(Error::failed(rule));
        };
        let mut all = Vec::new();
        for pair in map.viewed(super::value::View::Items, &self.heap)? {
            let key = pair.items().and_then(|pair| pair.get(at)).cloned();
            all.push((self.folded(key.unwrap_or(Value::None), case)?, pair));
        }
        let all = ops::sorted(&self.heap, all, reverse.is_some_and(|r| r.is_true()))?;
        self.heap.list(all)
    }

    /// The items of a lazy filter.
    pub(super) fn run(&mut self, name: &str, value: &Value, args: Args) -> Result<Vec<Value>> {
        match name {
            "map" => self.mapped(value, args),
            "select" | "selectattr" | "reject" | "rejectattr" => self.selected(name, value, args),
            "unique" => {
                let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
                let case = case.is_some_and(|c| c.is_true());
                let path = path(attribute.as_ref());
                let (mut seen, mut kept) = (HashSet::new(), Vec::new());
                for item in self.iterate(value)? {
                    let key = self.by(&item, &path, case)?;
                    if seen.insert(self.heap.key(&key)?) {
                        kept.push(item);
                    }
                }
                Ok(kept)
            }
            "items" => match value {
                Value::Undefined(_) => Ok(Vec::new()),
                Value::Map(map) => map.viewed(super::value::View::Items, &self.heap),
                _ => Err(Error::failed("Can only get item pairs from a mapping.")),
            },
            _ => {
                let names = if name == "batch" { "linecount" } else { "slices" };
                let [size, fill] = args.bind(name, [names, "fill_with"])?;
                let size = count(Some(&needed(size, name)?), 0)?;
                let fill = fill.filter(|fill| !fill.is_none());
                let items = self.iterate(value)?;
                match name {
                    "batch" => self.batched(&items, size, fill),
                    _ => self.parted(&items, size, fill),
                }
            }
        }
    }

    fn batched(&self, items: &[Value], size: usize, fill: Option<Value>) -> Result<Vec<Value>> {
        let mut lines = Vec::new();
        // Of no size the first line takes all, as there the length is never met.
        for line in items.chunks(if size == 0 { items.len().max(1) } else { size }) {
            let mut line = line.to_vec();
            if let Some(fill) = &fill
                && line.len() < size
            {
                self.heap.step(size - line.len())?;
                line.resize(size, fill.clone());
            }
            lines.push(self.heap.list(line)?);
        }
        Ok(lines)
    }

    fn parted(&self, items: &[Value], parts: usize, fill: Option<Value>) -> Result<Vec<Value>> {
        if parts == 0 {
            return Err(Error::failed("division by zero: slice"));
        }
        self.heap.step(parts)?;
        let (each, more) = (items.len() / parts, items.len() % parts);
        let mut made = Vec::new();
        let mut rest = items;
        for part in 0..parts {
            let (now, later) = rest.split_at(each + usize::from(part < more));
            rest = later;
            let mut now = now.to_vec();
            now.extend(fill.clone().filter(|_| part >= more));
            made.push(self.heap.list(now)?);
        }
        Ok(made)
    }

    fn mapped(&mut self, value: &Value, mut args: Args) -> Result<Vec<Value>> {
        if !value.is_true() {
            return Ok(Vec::new());
        }
        let items = self.iterate(value)?;
        let mut made = Vec::with_capacity(items.len());
        let by_name = args.named.iter().any(|(name, _)| &**name == "attribute");
        if args.positional.is_empty() && by_name {
            let [attribute, otherwise] = args.bind("map", ["attribute", "default"])?;
            let path = path(attribute.as_ref());
            let otherwise = otherwise.filter(|o| !o.is_none());
            for item in items {
                made.push(self.at(&item, &path, otherwise.as_ref())?);
            }
            return Ok(made);
        }
        if args.positional.is_empty() {
            return Err(Error::failed("map requires a filter argument"));
        }
        let name = args.positional.remove(0);
        let name = string(&name, "map")?;
        if !is_known(name) {
            return Err(Error::failed(format!("No filter named '{name}'.")));
        }
        for item in items {
            made.push(self.filter(name, &item, args.clone())?);
        }
        Ok(made)
    }

    fn selected(&mut self, name: &str, value: &Value, mut args: Args) -> Result<Vec<Value>> {
        if !value.is_true() {
            return Ok(Vec::new());
        }
        let (wanted, by_attribute) = (name.starts_with("select"), name.ends_with("attr"));
        let mut path = Vec::new();
        if by_attribute {
            if args.positional.is_empty() {
                return Err(Error::failed("Missing parameter for attribute name"));
            }
            path = self::path(Some(&args.positional.remove(0)));
        }
        let test = match args.positional.is_empty() {
            true => None,
            false => Some(args.positional.remove(0)),
        };
        let mut kept = Vec::new();
        for item in self.iterate(value)? {
            let asked = self.at(&item, &path, None)?;
            let holds = match &test {
                None => asked.is_true(),
                Some(test) => {
                    let test = string(test, name)?;
                    if !is::is_known(test) {
                        return Err(Error::failed(format!("No test named '{test}'.")));
                    }
                    self.test(test, &asked, args.clone())?
                }
            };
            if holds == wanted {
                kept.push(item);
            }
        }
        Ok(kept)
    }
}

/// A path of names and indices. `None` is the value itself.
fn path(attribute: Option<&Value>) -> Vec<Value> {
    match attribute {
        None | Some(Value::None) => Vec::new(),
        Some(Value::Text(text)) => {
            let part = |part: &str| match part.parse::<u64>() {
                Ok(index) if part.bytes().all(|b| b.is_ascii_digit()) => {
                    Value::Integer(index.into())
                }
                _ => part.into(),
            };
            text.text.split('.').map(part).collect()
        }
        Some(value) => vec![value.clone()],
    }
}

fn number(heap: &Heap, value: &Value, name: &str, args: Args) -> Result<Value> {
    value.defined()?;
    match name {
        "abs" => match value {
            Value::Float(number) => Ok(Value::Float(number.abs())),
            value if value.integer().is_some_and(|n| n < 0) => ops::signed(value, true),
            value => ops::signed(value, false),
        },
        "int" => {
            let [otherwise, base] = args.bind(name, ["default", "base"])?;
            let otherwise = otherwise.unwrap_or(Value::Integer(0));
            let base = whole(base.as_ref(), 10)?;
            Ok(truncated(heap, value, base)?.map_or(otherwise, Value::Integer))
        }
        "float" => {
            let [otherwise] = args.bind(name, ["default"])?;
            let number = match value {
                Value::Text(text) => parsed(&text.text),
                value => value.float(),
            };
            Ok(number.map(Value::Float).or(otherwise).unwrap_or(Value::Float(0.0)))
        }
        "round" => {
            let [precision, method] = args.bind(name, ["precision", "method"])?;
            let precision = whole(precision.as_ref(), 0)?;
            let method = method.unwrap_or_else(|| "common".into());
            heap.step(usize::try_from(precision.clamp(0, 400)).unwrap_or(0) / 8)?;
            rounded(value, precision, string(&method, name)?)
        }
        _ => {
            let [binary] = args.bind(name, ["binary"])?;
            let number = match value {
                Value::Text(text) => parsed(&text.text),
                value => value.float(),
            };
            let number =
                number.ok_or_else(|| Error::failed("filesizeformat: a number is required"))?;
            Ok(file_size(number, binary.is_some_and(|b| b.is_true())).into())
        }
    }
}

/// Python's `float` of a string.
fn parsed(text: &str) -> Option<f64> {
    digits_joined(text.trim_matches(super::lexer::is_space))?.parse().ok()
}

/// The text without the underscores that are between digits; `None` if there are others.
fn digits_joined(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let digit =
        |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_alphanumeric);
    let marks = bytes.iter().enumerate().filter(|(_, b)| **b == b'_');
    let sound = marks.into_iter().all(|(at, _)| digit(at.checked_sub(1)) && digit(Some(at + 1)));
    sound.then(|| text.replace('_', ""))
}

/// jinja2's `int`: of a string by its digits, of anything else by its value.
fn truncated(heap: &Heap, value: &Value, base: i128) -> Result<Option<i128>> {
    let large = || Error::failed("a number has more than 127 bits");
    let cut = |number: f64| match number {
        number if number.is_infinite() => {
            Err(Error::failed("cannot convert float infinity to integer"))
        }
        number if number.is_nan() => Ok(None),
        number if number.abs() < 1e38 => Ok(Some(number.trunc() as i128)),
        _ => Err(large()),
    };
    match value {
        Value::Text(text) => {
            heap.bytes(text.text.len())?;
            match radix(&text.text, base) {
                Some(number) => Ok(Some(number)),
                None => match parsed(&text.text) {
                    Some(number) if number.is_infinite() => Ok(None),
                    Some(number) => cut(number),
                    None => Ok(None),
                },
            }
        }
        Value::Float(number) => cut(*number),
        value => Ok(value.integer()),
    }
}

/// Python's `int(text, base)`.
fn radix(text: &str, base: i128) -> Option<i128> {
    let text = text.trim_matches(super::lexer::is_space);
    let negative = text.starts_with('-');
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let prefix = |sign: &str| {
        digits.get(..2).filter(|start| start.eq_ignore_ascii_case(sign)).map(|_| &digits[2..])
    };
    let (digits, base) = match base {
        16 => (prefix("0x").unwrap_or(digits), 16),
        8 => (prefix("0o").unwrap_or(digits), 8),
        2 => (prefix("0b").unwrap_or(digits), 2),
        0 => prefix("0x")
            .map(|rest| (rest, 16))
            .or_else(|| prefix("0o").map(|rest| (rest, 8)))
            .or_else(|| prefix("0b").map(|rest| (rest, 2)))
            .unwrap_or((digits, 10)),
        base => (digits, u32::try_from(base).ok().filter(|b| (2..=36).contains(b))?),
    };
    if digits.starts_with(['-', '+']) {
        return None;
    }
    let number = i128::from_str_radix(&digits_joined(digits)?, base).ok()?;
    Some(if negative { -number } else { number })
}

fn rounded(value: &Value, precision: i128, method: &str) -> Result<Value> {
    if !matches!(method, "common" | "ceil" | "floor") {
        return Err(Error::failed("method must be common, ceil or floor"));
    }
    let number = value.float().ok_or_else(|| {
        Error::failed(format!("type {} doesn't define __round__ method", value.kind()))
    })?;
    let places = i32::try_from(precision.clamp(-400, 400)).unwrap_or(0);
    let scale = 10f64.powi(places);
    if method != "common" {
        let scaled = number * scale;
        let made = if method == "ceil" { scaled.ceil() } else { scaled.floor() };
        // Python's are whole numbers, which have no negative zero.
        return Ok(Value::Float((made + 0.0) / scale));
    }
    if let Some(whole) = value.integer() {
        if places >= 0 {
            return Ok(Value::Integer(whole));
        }
        let size = 10i128.checked_pow(places.unsigned_abs());
        let Some(size) = size else { return Ok(Value::Integer(0)) };
        let (low, rest) = (whole.div_euclid(size), whole.rem_euclid(size));
        let up = rest * 2 > size || (rest * 2 == size && low % 2 != 0);
        let made = (low + i128::from(up)).checked_mul(size);
        return made.map(Value::Integer).ok_or_else(|| Error::failed("a number is too large"));
    }
    if !number.is_finite() {
        return Ok(Value::Float(number));
    }
    // Rust rounds the exact value, halves to even, as Python does.
    let made = match usize::try_from(places) {
        Ok(places) => format!("{number:.places$}").parse().unwrap_or(number),
        Err(_) => (number * scale).round_ties_even() / scale,
    };
    Ok(Value::Float(made))
}

fn file_size(number: f64, binary: bool) -> String {
    const UNITS: [&str; 8] = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if number == 1.0 {
        return "1 Byte".into();
    }
    if number < base {
        return format!("{} Bytes", number.trunc() + 0.0);
    }
    let end = if binary { "iB" } else { "B" };
    let mut unit = base;
    for (i, name) in UNITS.iter().enumerate() {
        unit *= base;
        if number < unit || i + 1 == UNITS.len() {
            let name = if binary { name.to_uppercase() } else { (*name).to_owned() };
            return format!("{:.1} {name}{end}", base * number / unit);
        }
    }
    String::new()
}
