//! Operators and comparisons of Python's values.

use super::ast::{Comparison, Operator};
use super::heap::Heap;
use super::value::{Range, Text, Value};
use super::{Error, Result, format};
use std::cmp::Ordering;

/// A number of either kind.
#[derive(Clone, Copy)]
enum Number {
    Integer(i128),
    Float(f64),
}

fn number(value: &Value) -> Option<Number> {
    match value {
        Value::Float(number) => Some(Number::Float(*number)),
        _ => value.integer().map(Number::Integer),
    }
}

impl Operator {
    fn sign(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::FloorDivide => "//",
            Self::Modulo => "%",
            Self::Power => "**",
        }
    }
}

/// `left operator right`.
pub(crate) fn binary(
    heap: &Heap,
    operator: Operator,
    left: &Value,
    right: &Value,
) -> Result<Value> {
    if let (Operator::Modulo, Value::Text(text)) = (operator, left) {
        let made = format::percent(heap, text, right)?;
        return Ok(Value::Text(Text { text: made.into(), safe: text.safe }));
    }
    left.defined()?;
    right.defined()?;
    if let (Some(a), Some(b)) = (number(left), number(right)) {
        return match (a, b) {
            (Number::Integer(a), Number::Integer(b)) => integers(operator, a, b),
            (a, b) => floats(operator, float(a), float(b)),
        };
    }
    match (operator, left, right) {
        (Operator::Add, Value::Text(a), Value::Text(b)) => joined(heap, a, b),
        (Operator::Add, Value::List(a), Value::List(b)) => {
            heap.step(a.values.len() + b.values.len())?;
            heap.list([&a.values[..], &b.values].concat())
        }
        (Operator::Add, Value::Tuple(a), Value::Tuple(b)) => {
            heap.step(a.values.len() + b.values.len())?;
            heap.tuple([&a.values[..], &b.values].concat())
        }
        (Operator::Multiply, value, times) if times.integer().is_some() => {
            repeated(heap, value, times).unwrap_or_else(|| unsupported(operator, left, right))
        }
        (Operator::Multiply, times, value) if times.integer().is_some() => {
            repeated(heap, value, times).unwrap_or_else(|| unsupported(operator, left, right))
        }
        _ => unsupported(operator, left, right),
    }
}

fn unsupported(operator: Operator, left: &Value, right: &Value) -> Result<Value> {
    let (sign, left, right) = (operator.sign(), left.kind(), right.kind());
    let rule = format!("unsupported operand type(s) for {sign}: '{left}' and '{right}'");
    Err(Error::failed(rule))
}

/// Two strings. What is added to a safe one is escaped.
fn joined(heap: &Heap, a: &Text, b: &Text) -> Result<Value> {
    heap.bytes(a.text.len() + b.text.len())?;
    if a.safe == b.safe {
        let text = [&*a.text, &*b.text].concat();
        return Ok(Value::Text(Text { text: text.into(), safe: a.safe }));
    }
    let part = |t: &Text| match t.safe {
        true => Ok(t.text.to_string()),
        false => escaped(heap, &t.text),
    };
    Ok(Value::safe(part(a)? + &part(b)?))
}

/// The text with HTML's special characters as entities.
pub(crate) fn escaped(heap: &Heap, text: &str) -> Result<String> {
    heap.bytes(text.len().saturating_mul(5))?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    Ok(out)
}

fn repeated(heap: &Heap, value: &Value, times: &Value) -> Option<Result<Value>> {
    let times = usize::try_from(times.integer()?.max(0)).unwrap_or(usize::MAX);
    let many = |items: &[Value]| -> Result<Vec<Value>> {
        heap.step(items.len().saturating_mul(times))?;
        let rounds = std::iter::repeat_n(items, times);
        Ok(rounds.flatten().cloned().collect())
    };
    Some(match value {
        Value::Text(text) => heap
            .repeated(&text.text, times)
            .map(|made| Value::Text(Text { text: made.into(), safe: text.safe })),
        Value::List(items) => many(&items.values).and_then(|values| heap.list(values)),
        Value::Tuple(items) => many(&items.values).and_then(|values| heap.tuple(values)),
        _ => return None,
    })
}

fn float(number: Number) -> f64 {
    match number {
        Number::Integer(n) => n as f64,
        Number::Float(n) => n,
    }
}

/// Beyond 127 bits Python goes on; here it is an error.
fn large() -> Error {
    Error::failed("a number has more than 127 bits")
}

fn integers(operator: Operator, a: i128, b: i128) -> Result<Value> {
    let zero = || Error::failed(format!("division by zero: {a} {} {b}", operator.sign()));
    let made = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::Divide | Operator::FloorDivide | Operator::Modulo if b == 0 => return Err(zero()),
        Operator::Divide => return Ok(Value::Float(a as f64 / b as f64)),
        Operator::FloorDivide => a.checked_div_euclid(b).and_then(|q| {
            // Euclid's remainder is never negative, Python's has the sign of the divisor.
            if b < 0 && a.rem_euclid(b) != 0 { q.checked_sub(1) } else { Some(q) }
        }),
        Operator::Modulo => {
            a.checked_rem_euclid(b).map(|r| if b < 0 && r != 0 { r + b } else { r })
        }
        Operator::Power if b < 0 => return floats(operator, a as f64, b as f64),
        Operator::Power => match a {
            0 | 1 => Some(if b == 0 { 1 } else { a }),
            -1 => Some(if b % 2 == 0 { 1 } else { -1 }),
            // More than 127 bits from here on, whatever the exponent.
            _ => u32::try_from(b).ok().filter(|b| *b < 128).and_then(|b| a.checked_pow(b)),
        },
    };
    made.map(Value::Integer).ok_or_else(large)
}

fn floats(operator: Operator, a: f64, b: f64) -> Result<Value> {
    let divides = matches!(operator, Operator::Divide | Operator::FloorDivide | Operator::Modulo);
    if divides && b == 0.0 {
        return Err(Error::failed(format!("division by zero: {a} {} {b}", operator.sign())));
    }
    // The remainder has the sign of the divisor, and the quotient goes with it, as in CPython.
    let remainder = || {
        let r = a % b;
        if r == 0.0 {
            0.0f64.copysign(b)
        } else if (r < 0.0) != (b < 0.0) {
            r + b
        } else {
            r
        }
    };
    Ok(Value::Float(match operator {
        Operator::Add => a + b,
        Operator::Subtract => a - b,
        Operator::Multiply => a * b,
        Operator::Divide => a / b,
        Operator::FloorDivide => {
            let quotient = (a - remainder()) / b;
            let floor = quotient.floor();
            if quotient - floor > 0.5 { floor + 1.0 } else { floor }
        }
        Operator::Modulo => remainder(),
        Operator::Power if a == 0.0 && b < 0.0 => {
            return Err(Error::failed("0.0 cannot be raised to a negative power"));
        }
        Operator::Power => {
            let made = a.powf(b);
            if made.is_infinite() && a.is_finite() && b.is_finite() {
                return Err(Error::failed("the result of ** is too large"));
            }
            if made.is_nan() && !a.is_nan() && !b.is_nan() {
                return Err(Error::failed("complex numbers are not known here"));
            }
            made
        }
    }))
}

/// `-value`, or `+value`.
pub(crate) fn signed(value: &Value, negative: bool) -> Result<Value> {
    value.defined()?;
    match number(value) {
        Some(Number::Integer(n)) if negative => {
            n.checked_neg().map(Value::Integer).ok_or_else(large)
        }
        Some(Number::Integer(n)) => Ok(Value::Integer(n)),
        Some(Number::Float(n)) => Ok(Value::Float(if negative { -n } else { n })),
        None => {
            let sign = if negative { '-' } else { '+' };
            let rule = format!("bad operand type for unary {sign}: '{}'", value.kind());
            Err(Error::failed(rule))
        }
    }
}

/// `left comparison right`.
pub(crate) fn compare(
    heap: &Heap,
    comparison: Comparison,
    left: &Value,
    right: &Value,
) -> Result<bool> {
    let ordered = |sign: &str, holds: &dyn Fn(Ordering) -> bool| {
        Ok(order(heap, sign, left, right)?.is_some_and(holds))
    };
    match comparison {
        Comparison::Equal => equal(heap, left, right),
        Comparison::NotEqual => Ok(!equal(heap, left, right)?),
        Comparison::Less => ordered("<", &Ordering::is_lt),
        Comparison::LessEqual => ordered("<=", &Ordering::is_le),
        Comparison::Greater => ordered(">", &Ordering::is_gt),
        Comparison::GreaterEqual => ordered(">=", &Ordering::is_ge),
        Comparison::In => contains(heap, right, left),
        Comparison::NotIn => Ok(!contains(heap, right, left)?),
    }
}

pub(crate) fn equal(heap: &Heap, a: &Value, b: &Value) -> Result<bool> {
    heap.step(1)?;
    if let (Some(a), Some(b)) = (number(a), number(b)) {
        return Ok(match (a, b) {
            (Number::Integer(a), Number::Integer(b)) => a == b,
            (a, b) => float(a) == float(b),
        });
    }
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => {
            heap.bytes(a.text.len().min(b.text.len()))?;
            Ok(a.text == b.text)
        }
        (Value::Undefined(_), Value::Undefined(_)) => Ok(true),
        (Value::List(x), Value::List(y)) | (Value::Tuple(x), Value::Tuple(y)) => {
            if a.is_same(b) || x.values.len() != y.values.len() {
                return Ok(a.is_same(b));
            }
            for (x, y) in x.values.iter().zip(&y.values) {
                if !x.is_same(y) && !equal(heap, x, y)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        (Value::Map(x), Value::Map(y)) => {
            if a.is_same(b) || x.len() != y.len() {
                return Ok(a.is_same(b));
            }
            for (key, value) in &x.entries {
                match y.found(&heap.key(key)?) {
                    Some(other) if value.is_same(other) || equal(heap, value, other)? => {}
                    _ => return Ok(false),
                }
            }
            Ok(true)
        }
        (Value::Range(a), Value::Range(b)) => Ok(a.len() == b.len()
            && (a.len() == 0 || a.start == b.start)
            && (a.len() < 2 || a.step == b.step)),
        _ => Ok(a.is_same(b)),
    }
}

/// How two values are ordered; `None` where a NaN is among them.
fn order(heap: &Heap, sign: &str, a: &Value, b: &Value) -> Result<Option<Ordering>> {
    heap.step(1)?;
    a.defined()?;
    b.defined()?;
    if let (Some(a), Some(b)) = (number(a), number(b)) {
        return Ok(match (a, b) {
            (Number::Integer(a), Number::Integer(b)) => Some(a.cmp(&b)),
            (a, b) => float(a).partial_cmp(&float(b)),
        });
    }
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => {
            heap.bytes(a.text.len().min(b.text.len()))?;
            // UTF-8 is ordered as its characters are.
            Ok(Some(a.text.cmp(&b.text)))
        }
        (Value::List(x), Value::List(y)) | (Value::Tuple(x), Value::Tuple(y)) => {
            for (x, y) in x.values.iter().zip(&y.values) {
                if !x.is_same(y) && !equal(heap, x, y)? {
                    return order(heap, sign, x, y);
                }
            }
            Ok(Some(x.values.len().cmp(&y.values.len())))
        }
        _ => {
            let (a, b) = (a.kind(), b.kind());
            let rule = format!("'{sign}' not supported between instances of '{a}' and '{b}'");
            Err(Error::failed(rule))
        }
    }
}

/// Whether `value` is in `whole`.
fn contains(heap: &Heap, whole: &Value, value: &Value) -> Result<bool> {
    let among = |values: &[Value]| -> Result<bool> {
        for each in values {
            if each.is_same(value) || equal(heap, each, value)? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    match whole {
        Value::Undefined(_) => Ok(false),
        Value::Text(text) => {
            let Value::Text(part) = value else {
                let rule = "'in <string>' requires string as left operand, not ".to_owned();
                return Err(Error::failed(rule + value.kind()));
            };
            heap.bytes(text.text.len())?;
            Ok(text.text.contains(&*part.text))
        }
        Value::List(items) | Value::Tuple(items) => among(&items.values),
        Value::Map(map) => Ok(map.found(&heap.key(value)?).is_some()),
        Value::View(view, map) => among(&map.viewed(*view, heap)?),
        Value::Range(range) => Ok(within(**range, value)),
        _ => Err(not_iterable(whole)),
    }
}

fn within(range: Range, value: &Value) -> bool {
    let whole = value.float().filter(|n| n.fract() == 0.0).map(|n| n as i128);
    let Some(n) = value.integer().or(whole) else { return false };
    let inside = if range.step > 0 {
        range.start <= n && n < range.stop
    } else {
        range.stop < n && n <= range.start
    };
    inside
        && n.checked_sub(range.start)
            .is_some_and(|n| n.checked_rem(range.step).is_none_or(|r| r == 0))
}

pub(crate) fn not_iterable(value: &Value) -> Error {
    Error::failed(format!("'{}' object is not iterable", value.kind()))
}

/// Sorts as Python does: stable, by `<` alone, which may fail. Each value goes with its key.
pub(crate) fn sorted(
    heap: &Heap,
    mut all: Vec<(Value, Value)>,
    reverse: bool,
) -> Result<Vec<Value>> {
    // Python sorts the reversed list and reverses it again, so that equal ones stay in order.
    if reverse {
        all.reverse();
    }
    let mut width = 1;
    while width < all.len() {
        heap.step(all.len())?;
        let mut merged = Vec::with_capacity(all.len());
        for pair in all.chunks(2 * width) {
            let (left, right) = pair.split_at(width.min(pair.len()));
            let (mut i, mut j) = (0, 0);
            while let (Some(a), Some(b)) = (left.get(i), right.get(j)) {
                let right_first = compare(heap, Comparison::Less, &b.0, &a.0)?;
                merged.push(if right_first { b.clone() } else { a.clone() });
                (i, j) = if right_first { (i, j + 1) } else { (i + 1, j) };
            }
            merged.extend_from_slice(&left[i..]);
            merged.extend_from_slice(&right[j..]);
        }
        all = merged;
        width *= 2;
    }
    if reverse {
        all.reverse();
    }
    Ok(all.into_iter().map(|(_, value)| value).collect())
}
