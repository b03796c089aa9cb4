//! Methods of values: which there are, and those of lists, maps and numbers.

use super::call::{Args, needed, whole};
use super::heap::Object;
use super::interpreter::Interpreter;
use super::value::{Value, View};
use super::{Error, Result, ops};
use std::sync::Arc;

const TEXT: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

/// The method of a value; `None` if there is none of this name.
pub(super) fn of(value: &Value, name: &str) -> Option<Value> {
    let names: &[&'static str] = match value {
        Value::Text(_) => &TEXT,
        Value::List(_) => &["copy", "count", "index"],
        Value::Tuple(_) | Value::Range(_) => &["count", "index"],
        Value::Map(_) => &["copy", "fromkeys", "get", "items", "keys", "values"],
        Value::Bool(_) | Value::Integer(_) => &["bit_length", "conjugate"],
        Value::Float(_) => &["conjugate", "is_integer"],
        Value::Object(_) => &["next", "reset"],
        Value::Loop(_) => &["changed", "cycle"],
        Value::Function("dict") => &["fromkeys"],
        _ => &[],
    };
    let name = names.iter().find(|known| **known == name)?;
    Some(Value::Method(Arc::new((value.clone(), *name))))
}

/// Whether the sandbox hides a method, since it changes the value.
pub(super) fn is_hidden(value: &Value, name: &str) -> bool {
    const LIST: [&str; 8] =
        ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
    const MAP: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
    match value {
        Value::List(_) => LIST.contains(&name),
        Value::Map(_) => MAP.contains(&name),
        _ => false,
    }
}

impl Interpreter<'_> {
    pub(super) fn method(
        &mut self,
        value: &Value,
        name: &'static str,
        args: Args,
    ) -> Result<Value> {
        match value {
            Value::Text(text) => self.text_method(text, name, args),
            Value::Map(map) => match name {
                "get" => {
                    let [key, otherwise] = args.in_order(name)?;
                    let key = self.heap.key(&needed(key, name)?)?;
                    let found = map.found(&key).cloned();
                    Ok(found.or(otherwise).unwrap_or(Value::None))
                }
                "fromkeys" => self.of_keys(args),
                _ => {
                    let [] = args.in_order(name)?;
                    Ok(match name {
                        "keys" => Value::View(View::Keys, map.clone()),
                        "values" => Value::View(View::Values, map.clone()),
                        "items" => Value::View(View::Items, map.clone()),
                        _ => {
                            self.heap.step(4 * map.len())?;
                            self.heap.map(map.entries.clone())?
                        }
                    })
                }
            },
            Value::List(_) | Value::Tuple(_) | Value::Range(_) => {
                self.list_method(value, name, args)
            }
            Value::Loop(id) => self.loop_method(*id, name, args),
            Value::Function(_) => self.of_keys(args),
            Value::Object(id) => {
                let [] = args.in_order(name)?;
                match self.heap.objects.get_mut(*id) {
                    Some(Object::Cycler(items, at)) if name == "next" => {
                        let item = items.get(*at).cloned();
                        *at = (*at + 1) % items.len().max(1);
                        Ok(item.unwrap_or(Value::None))
                    }
                    Some(Object::Cycler(_, at)) => {
                        *at = 0;
                        Ok(Value::None)
                    }
                    _ => Ok(Value::None),
                }
            }
            _ => number_method(value, name, args),
        }
    }

    fn of_keys(&mut self, args: Args) -> Result<Value> {
        let [keys, value] = args.in_order("fromkeys")?;
        let value = value.unwrap_or(Value::None);
        let keys = self.iterate(&needed(keys, "fromkeys")?)?;
        self.heap.map(keys.into_iter().map(|key| (key, value.clone())).collect())
    }

    fn list_method(&mut self, value: &Value, name: &str, args: Args) -> Result<Value> {
        let items = self.iterate(value)?;
        if name == "copy" {
            let [] = args.in_order(name)?;
            return self.heap.list(items);
        }
        let [wanted, start, stop] = args.in_order(name)?;
        let wanted = needed(wanted, name)?;
        let place = |at: i128| {
            let at = if at < 0 { at.saturating_add(items.len() as i128) } else { at };
            usize::try_from(at.max(0)).unwrap_or(usize::MAX)
        };
        let start = place(whole(start.as_ref(), 0)?);
        let stop = place(whole(stop.as_ref(), i128::MAX)?);
        let mut count = 0;
        for (at, item) in items.iter().enumerate() {
            if !item.is_same(&wanted) && !ops::equal(&self.heap, item, &wanted)? {
                continue;
            }
            count += 1;
            if name == "index" && (start..stop).contains(&at) {
                return Ok(Value::Integer(at as i128));
            }
        }
        match name {
            "index" => Err(Error::failed(format!("the value is not in the {}", value.kind()))),
            _ => Ok(Value::Integer(count)),
        }
    }
}

fn number_method(value: &Value, name: &str, args: Args) -> Result<Value> {
    let [] = args.in_order(name)?;
    Ok(match (name, value) {
        ("bit_length", _) => {
            let size = value.integer().unwrap_or(0).unsigned_abs();
            Value::Integer(i128::from(u128::BITS - size.leading_zeros()))
        }
        ("is_integer", Value::Float(number)) => {
            Value::Bool(number.is_finite() && number.fract() == 0.0)
        }
        (_, Value::Bool(value)) => Value::Integer(i128::from(*value)),
        _ => value.clone(),
    })
}
