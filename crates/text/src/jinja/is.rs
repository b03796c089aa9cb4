//! Tests of jinja2: `value is name`.

use super::ast::Comparison;
use super::call::{Args, needed};
use super::heap::{Heap, Object};
use super::value::{Text, Value};
use super::{Error, Result, filters, ops};

const NAMES: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

pub(super) fn is_known(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Whether the test holds of a value.
pub(super) fn test(heap: &Heap, name: &str, value: &Value, args: Args) -> Result<bool> {
    heap.step(1)?;
    let comparison = match name {
        "==" | "eq" | "equalto" => Some(Comparison::Equal),
        "!=" | "ne" => Some(Comparison::NotEqual),
        ">" | "gt" | "greaterthan" => Some(Comparison::Greater),
        ">=" | "ge" => Some(Comparison::GreaterEqual),
        "<" | "lt" | "lessthan" => Some(Comparison::Less),
        "<=" | "le" => Some(Comparison::LessEqual),
        "in" => Some(Comparison::In),
        _ => None,
    };
    if let Some(comparison) = comparison {
        let [other] = args.bind(name, ["other"])?;
        return ops::compare(heap, comparison, value, &needed(other, name)?);
    }
    match name {
        "divisibleby" => {
            let [by] = args.bind(name, ["num"])?;
            divided(value, &needed(by, name)?, heap)
        }
        "sameas" => {
            let [other] = args.bind(name, ["other"])?;
            Ok(value.is_same(&needed(other, name)?))
        }
        _ => {
            let [] = args.in_order(name)?;
            holds(heap, name, value)
        }
    }
}

fn divided(value: &Value, by: &Value, heap: &Heap) -> Result<bool> {
    let rest = ops::binary(heap, super::ast::Operator::Modulo, value, by)?;
    ops::equal(heap, &rest, &Value::Integer(0))
}

fn holds(heap: &Heap, name: &str, value: &Value) -> Result<bool> {
    Ok(match name {
        "odd" | "even" => {
            let rest = ops::binary(heap, super::ast::Operator::Modulo, value, &Value::Integer(2))?;
            let wanted = Value::Integer(i128::from(name == "odd"));
            ops::equal(heap, &rest, &wanted)?
        }
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => value.is_none(),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Integer(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.float().is_some(),
        "string" => value.text().is_some(),
        "mapping" => matches!(value, Value::Map(_)),
        "escaped" => matches!(value, Value::Text(Text { safe: true, .. })),
        "sequence" => matches!(
            value,
            Value::Undefined(_)
                | Value::Text(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Map(_)
                | Value::Range(_)
        ),
        "iterable" => match value {
            Value::Object(id) => {
                matches!(heap.objects.get(*id), Some(Object::Iterator(_) | Object::Pending(..)))
            }
            Value::None | Value::Bool(_) | Value::Integer(_) | Value::Float(_) => false,
            Value::Macro(..) | Value::Method(_) | Value::Function(_) => false,
            _ => true,
        },
        "callable" => match value {
            Value::Object(id) => matches!(heap.objects.get(*id), Some(Object::Joiner(..))),
            // Undefined values have the method that fails.
            Value::Undefined(_) | Value::Macro(..) | Value::Method(_) => true,
            Value::Loop(_) | Value::Function(_) => true,
            _ => false,
        },
        "lower" | "upper" => {
            let text = heap.text(value)?;
            heap.bytes(text.len())?;
            let (lower, upper) =
                (text.chars().any(char::is_lowercase), text.chars().any(char::is_uppercase));
            if name == "lower" { lower && !upper } else { upper && !lower }
        }
        "filter" => value.text().is_some_and(filters::is_known),
        "test" => value.text().is_some_and(is_known),
        _ => return Err(Error::failed(format!("No test named '{name}'."))),
    })
}
