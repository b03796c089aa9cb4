//! Python's `%` on strings, `str.format`, and the specifications of both.

use super::call::Args;
use super::heap::{self, Heap};
use super::interpreter::Interpreter;
use super::lexer::escaped;
use super::value::{Text, Value};
use super::{Error, Result, ops};
use std::iter::Peekable;
use std::str::Chars;

/// Digits after the point. Doubles have some thousand at most.
const MAX_PRECISION: usize = 1000;

fn wrong(rule: impl Into<String>) -> Error {
    Error::failed(rule)
}

/// How a field is written: `[[fill]align][sign][#][0][width][,][.precision][kind]`.
struct Spec {
    fill: char,
    align: Option<char>,
    /// Whether zeros fill a number, between its sign and its digits.
    zeros: bool,
    sign: char,
    /// Whether a sign is asked for, if only the usual one.
    signed: bool,
    alternate: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// The digits that come next. What is too large for a number is as large as one can be: it is
/// charged before anything of its width is made.
fn digits(chars: &mut Peekable<Chars<'_>>) -> Option<usize> {
    let mut value: Option<usize> = None;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        let next = value.unwrap_or(0).saturating_mul(10).saturating_add(digit as usize);
        value = Some(next);
        chars.next();
    }
    value
}

impl Spec {
    fn parse(text: &str) -> Result<Self> {
        let mut chars = text.chars().peekable();
        let mut spec = Self {
            fill: ' ',
            align: None,
            zeros: false,
            sign: '-',
            signed: false,
            alternate: false,
            width: 0,
            grouping: None,
            precision: None,
            kind: None,
        };
        let aligns = |c: &char| matches!(c, '<' | '>' | '^' | '=');
        let mut filled = false;
        let mut ahead = chars.clone();
        match (ahead.next(), ahead.next()) {
            (Some(fill), Some(align)) if aligns(&align) => {
                (spec.fill, spec.align) = (fill, Some(align));
                (chars, filled) = (ahead, true);
            }
            _ => spec.align = chars.next_if(aligns),
        }
        if let Some(sign) = chars.next_if(|c| matches!(c, '+' | '-' | ' ')) {
            (spec.sign, spec.signed) = (sign, true);
        }
        spec.alternate = chars.next_if_eq(&'#').is_some();
        if !filled && chars.next_if_eq(&'0').is_some() {
            (spec.fill, spec.zeros) = ('0', true);
        }
        spec.width = digits(&mut chars).unwrap_or(0);
        spec.grouping = chars.next_if(|c| matches!(c, ',' | '_'));
        if chars.next_if_eq(&'.').is_some() {
            let precision = digits(&mut chars);
            spec.precision =
                Some(precision.ok_or_else(|| wrong("Format specifier missing precision"))?);
        }
        spec.kind = chars.next();
        if chars.next().is_some() {
            return Err(wrong("Invalid format specifier"));
        }
        Ok(spec)
    }

    /// The text at its place in the field; `sign` characters stay before a fill of `=`.
    fn placed(&self, heap: &Heap, text: &str, sign: usize, otherwise: char) -> Result<String> {
        let missing = self.width.saturating_sub(text.chars().count());
        heap.bytes(missing.saturating_mul(self.fill.len_utf8()).saturating_add(text.len()))?;
        let fill = |n: usize| self.fill.to_string().repeat(n);
        Ok(match self.align.unwrap_or(otherwise) {
            '<' => format!("{text}{}", fill(missing)),
            '^' => format!("{}{text}{}", fill(missing / 2), fill(missing - missing / 2)),
            '=' => format!("{}{}{}", &text[..sign], fill(missing), &text[sign..]),
            _ => format!("{}{text}", fill(missing)),
        })
    }

    fn number(&self, heap: &Heap, negative: bool, prefix: &str, number: &str) -> Result<String> {
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, '+') => "+",
            (false, ' ') => " ",
            _ => "",
        };
        let size = if matches!(self.kind, Some('x' | 'X' | 'o' | 'b')) { 4 } else { 3 };
        let lead = sign.len() + prefix.len();
        let otherwise = if self.zeros { '=' } else { '>' };
        let zeros = self.fill == '0' && self.align.unwrap_or(otherwise) == '=';
        let number = match self.grouping {
            None => number.to_owned(),
            Some(mark) => {
                // Zeros that fill the field are grouped too.
                let room = if zeros { self.width.saturating_sub(lead) } else { 0 };
                heap.bytes(room)?;
                grouped(number, mark, size, room)
            }
        };
        self.placed(heap, &format!("{sign}{prefix}{number}"), lead, otherwise)
    }
}

/// Digits with a mark between each group, and zeros before them up to `room` characters.
fn grouped(number: &str, mark: char, size: usize, room: usize) -> String {
    let digit = |c: char| if size == 4 { c.is_ascii_hexdigit() } else { c.is_ascii_digit() };
    let whole = number.find(|c| !digit(c)).unwrap_or(number.len());
    let (whole, rest) = number.split_at(whole);
    let mut made: Vec<char> = Vec::new();
    let mut count = 0;
    let mut push = |made: &mut Vec<char>, c: char| {
        if count > 0 && count % size == 0 {
            made.push(mark);
        }
        made.push(c);
        count += 1;
    };
    whole.chars().rev().for_each(|c| push(&mut made, c));
    while made.len() + rest.len() < room {
        push(&mut made, '0');
    }
    made.iter().rev().chain(rest.chars().collect::<Vec<_>>().iter()).collect()
}

/// Python's `format(value, spec)`.
fn specified(heap: &Heap, value: &Value, text: &str) -> Result<String> {
    if text.is_empty() {
        return Ok(heap.text(value)?.to_string());
    }
    let unsupported =
        || wrong(format!("unsupported format string passed to {}.__format__", value.kind()));
    match value {
        Value::Text(text_value) => {
            let spec = Spec::parse(text)?;
            let plain = matches!(spec.kind, None | Some('s')) && !spec.signed;
            if !plain || spec.alternate || spec.grouping.is_some() {
                return Err(wrong("Invalid format specifier for object of type 'str'"));
            }
            if spec.align == Some('=') {
                return Err(wrong("'=' alignment not allowed in string format specifier"));
            }
            let cut: String =
                text_value.text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
            spec.placed(heap, &cut, 0, '<')
        }
        Value::Bool(_) | Value::Integer(_) => {
            let spec = Spec::parse(text)?;
            let number = value.integer().unwrap_or(0);
            if matches!(spec.kind, Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')) {
                return real(heap, number as f64, &spec);
            }
            if spec.precision.is_some() {
                return Err(wrong("Precision not allowed in integer format specifier"));
            }
            integer(heap, number, &spec)
        }
        Value::Float(number) => real(heap, *number, &Spec::parse(text)?),
        _ => Err(unsupported()),
    }
}

fn integer(heap: &Heap, number: i128, spec: &Spec) -> Result<String> {
    let groups = match spec.kind {
        None | Some('d') => true,
        Some('x' | 'X' | 'o' | 'b') => spec.grouping != Some(','),
        _ => spec.grouping.is_none(),
    };
    if !groups {
        return Err(wrong("Cannot specify grouping with this kind of number"));
    }
    let size = number.unsigned_abs();
    let (prefix, digits) = match spec.kind {
        None | Some('d' | 'n') => ("", size.to_string()),
        Some('x') => ("0x", format!("{size:x}")),
        Some('X') => ("0X", format!("{size:X}")),
        Some('o') => ("0o", format!("{size:o}")),
        Some('b') => ("0b", format!("{size:b}")),
        Some('c') if spec.alternate || spec.signed => {
            return Err(wrong("Sign and alternate form are not allowed with 'c'"));
        }
        Some('c') => {
            let made = u32::try_from(number).ok().and_then(char::from_u32);
            let made = made.ok_or_else(|| wrong("%c arg not in range(0x110000)"))?;
            return spec.placed(heap, &made.to_string(), 0, '<');
        }
        Some(kind) => return Err(wrong(format!("Unknown format code '{kind}' for an int"))),
    };
    spec.number(heap, number < 0, if spec.alternate { prefix } else { "" }, &digits)
}

fn real(heap: &Heap, number: f64, spec: &Spec) -> Result<String> {
    let negative = number.is_sign_negative() && !number.is_nan();
    if spec.kind == Some('n') && spec.grouping.is_some() {
        return Err(wrong("Cannot specify grouping with 'n'."));
    }
    let size = number.abs();
    let precision = spec.precision.unwrap_or(6);
    heap.bytes(precision)?;
    if precision > MAX_PRECISION {
        return Err(wrong(format!("a precision above {MAX_PRECISION} is not known here")));
    }
    let upper = matches!(spec.kind, Some('E' | 'F' | 'G'));
    let text = if !size.is_finite() {
        if size.is_nan() { "nan".to_owned() } else { "inf".to_owned() }
    } else {
        match spec.kind.map(|kind| kind.to_ascii_lowercase()) {
            Some('f') => format!("{size:.precision$}"),
            Some('e') => exponential(size, precision),
            Some('g' | 'n') => general(size, precision, spec.alternate),
            Some('%') => format!("{:.precision$}%", size * 100.0),
            None if spec.precision.is_none() => heap::float(size),
            None => shortest(size, precision, spec.alternate),
            Some(kind) => {
                return Err(wrong(format!("Unknown format code '{kind}' for a float")));
            }
        }
    };
    let text = if spec.alternate && size.is_finite() { pointed(&text) } else { text };
    let text = if upper { text.to_uppercase() } else { text };
    spec.number(heap, negative, "", &text)
}

fn exponential(number: f64, precision: usize) -> String {
    let text = format!("{number:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// The exponent of a number that is written with so many digits.
fn exponent(number: f64, digits: usize) -> i32 {
    let text = format!("{number:.*e}", digits.saturating_sub(1));
    text.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0)
}

fn general(number: f64, precision: usize, alternate: bool) -> String {
    let precision = precision.max(1);
    let exponent = exponent(number, precision);
    let fixed = exponent >= -4 && exponent < i32::try_from(precision).unwrap_or(i32::MAX);
    let text = if fixed {
        let after = usize::try_from(precision as i64 - 1 - i64::from(exponent)).unwrap_or(0);
        format!("{number:.after$}")
    } else {
        exponential(number, precision - 1)
    };
    if alternate { text } else { without_zeros(&text) }
}

fn without_zeros(text: &str) -> String {
    let (digits, rest) = text.split_at(text.find('e').unwrap_or(text.len()));
    match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned() + rest,
        false => text.to_owned(),
    }
}

/// The number with a point, whatever follows it.
fn pointed(text: &str) -> String {
    let (digits, rest) = text.split_at(text.find(['e', '%']).unwrap_or(text.len()));
    let point = if digits.contains('.') { "" } else { "." };
    format!("{digits}{point}{rest}")
}

/// A float with a precision and no kind: as `g`, but with a digit after the point, for which one of
/// those before it is given up.
fn shortest(number: f64, precision: usize, alternate: bool) -> String {
    let precision = precision.max(1);
    let places = exponent(number, precision);
    if places >= -4 && places + 1 < i32::try_from(precision).unwrap_or(i32::MAX) {
        let text = general(number, precision, alternate);
        return if text.contains('.') { text } else { text + ".0" };
    }
    let text = exponential(number, precision - 1);
    if alternate { text } else { without_zeros(&text) }
}

/// Python's `format % values`.
pub(super) fn percent(heap: &Heap, format: &Text, values: &Value) -> Result<String> {
    heap.bytes(format.text.len())?;
    let (mut left, single) = match values {
        Value::Tuple(items) => (items.values.clone(), false),
        value => (vec![value.clone()], true),
    };
    left.reverse();
    // What may be asked by name needs not be asked at all.
    let mapping =
        matches!(values, Value::Map(_) | Value::List(_) | Value::Range(_) | Value::Undefined(_));
    let mut named = false;
    let mut out = String::new();
    let mut chars = format.text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut value = None;
        if chars.next_if_eq(&'(').is_some() {
            value = Some(keyed(heap, &mut chars, values)?);
            named = true;
        }
        let field = Field::parse(&mut chars, &mut left)?;
        if field.kind == '%' {
            out.push('%');
            continue;
        }
        let value = match value {
            Some(value) => value,
            None => left.pop().ok_or_else(|| wrong("not enough arguments for format string"))?,
        };
        let text = field.written(heap, &value, format.safe)?;
        heap.bytes(text.len())?;
        out.push_str(&text);
    }
    let converted = named || (single && mapping);
    if !left.is_empty() && !converted {
        return Err(wrong("not all arguments converted during string formatting"));
    }
    Ok(out)
}

/// The value that a field names, after its opening parenthesis.
fn keyed(heap: &Heap, chars: &mut Peekable<Chars<'_>>, values: &Value) -> Result<Value> {
    let Value::Map(map) = values else { return Err(wrong("format requires a mapping")) };
    let mut depth = 1;
    let mut key = String::new();
    for c in chars.by_ref() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            let found = map.found(&heap.key(&key.as_str().into())?).cloned();
            return found.ok_or_else(|| wrong(format!("format has no argument '{key}'")));
        }
        key.push(c);
    }
    Err(wrong("incomplete format key"))
}

/// A field of `%`.
struct Field {
    minus: bool,
    spec: Spec,
    kind: char,
}

impl Field {
    fn parse(chars: &mut Peekable<Chars<'_>>, left: &mut Vec<Value>) -> Result<Self> {
        let (mut minus, mut zero) = (false, false);
        let mut spec = Spec::parse("")?;
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '0' | '+' | ' ' | '#')) {
            match flag {
                '-' => minus = true,
                '0' => zero = true,
                '+' => spec.sign = '+',
                ' ' if spec.sign != '+' => spec.sign = ' ',
                '#' => spec.alternate = true,
                _ => {}
            }
        }
        let mut starred = |chars: &mut Peekable<Chars<'_>>| -> Result<Option<i128>> {
            if chars.next_if_eq(&'*').is_none() {
                return Ok(digits(chars).map(|n| n as i128));
            }
            let value = left.pop().and_then(|value| value.integer());
            value.map(Some).ok_or_else(|| wrong("* wants int"))
        };
        let width = starred(chars)?.unwrap_or(0);
        minus |= width < 0;
        spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
        if chars.next_if_eq(&'.').is_some() {
            let precision = starred(chars)?.unwrap_or(0).max(0);
            spec.precision = Some(usize::try_from(precision).unwrap_or(usize::MAX));
        }
        while chars.next_if(|c| matches!(c, 'h' | 'l' | 'L')).is_some() {}
        let kind = chars.next().ok_or_else(|| wrong("incomplete format"))?;
        if zero && !minus {
            (spec.fill, spec.align) = ('0', Some('='));
        }
        if minus {
            spec.align = Some('<');
        }
        Ok(Self { minus, spec, kind })
    }

    fn written(mut self, heap: &Heap, value: &Value, safe: bool) -> Result<String> {
        let needed = |what: &str| {
            wrong(format!("%{} format: {what} is required, not {}", self.kind, value.kind()))
        };
        match self.kind {
            's' | 'r' | 'a' => {
                let text = match self.kind {
                    's' => heap.text(value)?.to_string(),
                    'a' => in_ascii(heap, &heap.shown(value)?)?,
                    _ => heap.shown(value)?,
                };
                let text = if safe && !matches!(value, Value::Text(Text { safe: true, .. })) {
                    ops::escaped(heap, &text)?
                } else {
                    text
                };
                let cut: String =
                    text.chars().take(self.spec.precision.unwrap_or(usize::MAX)).collect();
                let align = if self.minus { '<' } else { '>' };
                let spec = Spec { fill: ' ', align: Some(align), ..self.spec };
                spec.placed(heap, &cut, 0, align)
            }
            'd' | 'i' | 'u' => {
                let whole = match value {
                    Value::Float(number) if number.abs() < 1e38 => Some(number.trunc() as i128),
                    Value::Float(_) => return Err(wrong("a number has more than 127 bits")),
                    value => value.integer(),
                };
                let whole = whole.ok_or_else(|| needed("a real number"))?;
                self.spec.kind = None;
                self.whole(heap, whole)
            }
            'x' | 'X' | 'o' => {
                let whole = value.integer().ok_or_else(|| needed("an integer"))?;
                self.spec.kind = Some(self.kind);
                self.whole(heap, whole)
            }
            'c' => {
                let text = match value {
                    Value::Text(text) if text.text.chars().count() == 1 => text.text.to_string(),
                    value => {
                        let code = value.integer().and_then(|n| u32::try_from(n).ok());
                        let made = code.and_then(char::from_u32);
                        made.ok_or_else(|| needed("int or char"))?.to_string()
                    }
                };
                let align = if self.minus { '<' } else { '>' };
                let spec = Spec { fill: ' ', align: Some(align), ..self.spec };
                spec.placed(heap, &text, 0, align)
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let number = value.float().ok_or_else(|| needed("a real number"))?;
                self.spec.kind = Some(self.kind);
                real(heap, number, &self.spec)
            }
            kind => Err(wrong(format!("unsupported format character '{kind}'"))),
        }
    }

    /// A whole number; its precision is the fewest digits that it has.
    fn whole(&self, heap: &Heap, number: i128) -> Result<String> {
        let Some(precision) = self.spec.precision else { return integer(heap, number, &self.spec) };
        heap.bytes(precision)?;
        let plain =
            Spec { width: 0, align: None, zeros: false, alternate: false, sign: '-', ..self.spec };
        let text = integer(heap, number, &plain)?;
        let digits = text.trim_start_matches('-');
        let zeros = "0".repeat(precision.saturating_sub(digits.len()));
        let prefix = match self.spec.kind {
            Some('x') if self.spec.alternate => "0x",
            Some('X') if self.spec.alternate => "0X",
            Some('o') if self.spec.alternate => "0o",
            _ => "",
        };
        self.spec.number(heap, number < 0, prefix, &(zeros + digits))
    }
}

/// Python's `ascii` of what `repr` has written.
fn in_ascii(heap: &Heap, text: &str) -> Result<String> {
    heap.bytes(text.len().saturating_mul(5))?;
    let mut made = String::new();
    for c in text.chars() {
        if c.is_ascii() {
            made.push(c);
        } else {
            made.push_str(&escaped(c));
        }
    }
    Ok(made)
}

impl Interpreter<'_> {
    /// Python's `text.format(...)`.
    pub(super) fn format(&mut self, text: &str, args: &Args) -> Result<String> {
        let mut counter = Counter::Unset;
        self.formatted(text, args, &mut counter, 3)
    }

    fn formatted(
        &mut self,
        text: &str,
        args: &Args,
        counter: &mut Counter,
        levels: usize,
    ) -> Result<String> {
        if levels == 0 {
            return Err(wrong("Max string recursion exceeded"));
        }
        self.heap.bytes(text.len())?;
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let (sign, after) = rest[at..].split_at(1);
            if after.starts_with(sign) {
                out.push_str(sign);
                rest = &after[1..];
                continue;
            }
            if sign == "}" {
                return Err(wrong("Single '}' encountered in format string"));
            }
            let end = field_end(after)?;
            let (name, conversion, spec) = field_parts(&after[..end]);
            let value = self.field(name, args, counter)?;
            let value = match conversion {
                None => value,
                Some("s") => Value::Text(Text { text: self.heap.text(&value)?, safe: false }),
                Some("r") => self.heap.shown(&value)?.into(),
                Some("a") => in_ascii(&self.heap, &self.heap.shown(&value)?)?.into(),
                Some(_) => return Err(wrong("Unknown conversion specifier")),
            };
            let spec = self.formatted(spec, args, counter, levels - 1)?;
            let made = specified(&self.heap, &value, &spec)?;
            self.heap.bytes(made.len())?;
            out.push_str(&made);
            rest = &after[end + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    /// The value of a field: `name.attribute[item]`.
    fn field(&mut self, name: &str, args: &Args, counter: &mut Counter) -> Result<Value> {
        let first = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(first);
        let number = match first {
            "" => Some(counter.next()?),
            first if first.bytes().all(|b| b.is_ascii_digit()) => {
                counter.manual()?;
                Some(first.parse().unwrap_or(usize::MAX))
            }
            _ => None,
        };
        let mut value =
            match number {
                Some(at) => args.positional.get(at).cloned().ok_or_else(|| {
                    wrong("Replacement index out of range for positional args tuple")
                })?,
                None => {
                    let named = args.named.iter().find(|(known, _)| **known == *first);
                    let named = named.map(|(_, value)| value.clone());
                    named.ok_or_else(|| wrong(format!("format has no argument '{first}'")))?
                }
            };
        while !rest.is_empty() {
            if let Some(item) = rest.strip_prefix('[') {
                let end = item.find(']').ok_or_else(|| wrong("Missing ']' in format string"))?;
                let index = match item[..end].parse::<i128>() {
                    Ok(number) if !item.starts_with(['-', '+']) => Value::Integer(number),
                    _ => item[..end].into(),
                };
                value = self.item(&value, &index)?;
                rest = &item[end + 1..];
            } else {
                let attribute = rest.strip_prefix('.').unwrap_or(rest);
                let end = attribute.find(['.', '[']).unwrap_or(attribute.len());
                if end == 0 {
                    return Err(wrong("Empty attribute in format string"));
                }
                value = self.attribute(&value, &attribute[..end])?;
                rest = &attribute[end..];
            }
        }
        Ok(value)
    }
}

/// Whether fields are numbered, or count.
enum Counter {
    Unset,
    Counts(usize),
    Numbered,
}

impl Counter {
    fn next(&mut self) -> Result<usize> {
        let at = match self {
            Self::Unset => 0,
            Self::Counts(at) => *at,
            Self::Numbered => {
                let rule = "cannot switch from manual field specification to automatic numbering";
                return Err(wrong(rule));
            }
        };
        *self = Self::Counts(at + 1);
        Ok(at)
    }

    fn manual(&mut self) -> Result<()> {
        if matches!(self, Self::Counts(_)) {
            let rule = "cannot switch from automatic field numbering to manual specification";
            return Err(wrong(rule));
        }
        *self = Self::Numbered;
        Ok(())
    }
}

/// Where a field ends, after its opening brace.
fn field_end(text: &str) -> Result<usize> {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Ok(at);
        }
    }
    Err(wrong("expected '}' before end of string"))
}

/// Name, conversion and specification of a field.
fn field_parts(field: &str) -> (&str, Option<&str>, &str) {
    let mut in_item = false;
    let end = field.find(|c| {
        in_item = (in_item || c == '[') && c != ']';
        !in_item && matches!(c, '!' | ':')
    });
    let (name, rest) = field.split_at(end.unwrap_or(field.len()));
    match rest.strip_prefix('!') {
        Some(rest) => {
            let (conversion, spec) = rest.split_once(':').unwrap_or((rest, ""));
            (name, Some(conversion), spec)
        }
        None => (name, None, rest.strip_prefix(':').unwrap_or("")),
    }
}
