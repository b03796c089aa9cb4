//! Values of Python, as far as templates have them.

use super::heap::Heap;
use super::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// How deep lists and maps may lie within each other: they are freed, printed and compared
/// recursively.
pub(crate) const MAX_DEPTH: usize = 400;

/// A value. Nothing of it changes once it is made, but for what an `Object` stands for.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Nothing, with what is said where it is used.
    Undefined(Arc<str>),
    None,
    Bool(bool),
    /// Python's have no bound; one that exceeds these is an error.
    Integer(i128),
    Float(f64),
    Text(Text),
    List(Arc<Items>),
    Tuple(Arc<Items>),
    Map(Arc<Map>),
    /// Apart, so that no value takes more than 32 bytes.
    Range(Box<Range>),
    /// The keys, values or items of a map.
    View(View, Arc<Map>),
    /// What changes: an index into the heap.
    Object(usize),
    /// A macro of the interpreter, and its name.
    Macro(usize, Arc<str>),
    /// A loop of the interpreter.
    Loop(usize),
    /// A method of a value.
    Method(Arc<(Value, &'static str)>),
    /// A function that every template has.
    Function(&'static str),
}

/// A string; a safe one is what markupsafe calls `Markup`.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    pub(crate) text: Arc<str>,
    pub(crate) safe: bool,
}

#[derive(Debug)]
pub(crate) struct Items {
    pub(crate) values: Vec<Value>,
    depth: usize,
    /// Whether these are the key and the list of a `groupby`, which have names.
    pub(crate) group: bool,
}

/// A dict: in the order in which keys came.
#[derive(Debug, Default)]
pub(crate) struct Map {
    pub(crate) entries: Vec<(Value, Value)>,
    index: HashMap<Key, usize>,
    depth: usize,
}

/// What a value is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Undefined,
    None,
    /// A bool and a float without fraction are the same key as the number.
    Integer(i128),
    Float(u64),
    Text(Arc<str>),
    Tuple(Vec<Key>),
    Range(i128, i128, i128),
    Other(&'static str, usize),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) start: i128,
    pub(crate) stop: i128,
    pub(crate) step: i128,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum View {
    Keys,
    Values,
    Items,
}

impl Range {
    pub(crate) fn len(self) -> usize {
        let (span, step) = if self.step > 0 {
            (self.stop.saturating_sub(self.start), self.step)
        } else {
            (self.start.saturating_sub(self.stop), self.step.saturating_neg())
        };
        let count = if span <= 0 { 0 } else { (span - 1) / step + 1 };
        usize::try_from(count).unwrap_or(usize::MAX)
    }

    /// The value at `index`, which is below the length.
    pub(crate) fn get(self, index: usize) -> Value {
        Value::Integer(self.start.saturating_add(self.step.saturating_mul(index as i128)))
    }
}

impl Map {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The value of a key that is a string.
    pub(crate) fn named(&self, name: &str) -> Option<&Value> {
        // A key for the lookup alone; names are short.
        self.found(&Key::Text(name.into()))
    }

    pub(crate) fn found(&self, key: &Key) -> Option<&Value> {
        self.index.get(key).and_then(|at| self.entries.get(*at)).map(|(_, value)| value)
    }

    /// The items of a view on it.
    pub(crate) fn viewed(&self, view: View, heap: &Heap) -> Result<Vec<Value>> {
        heap.step(self.len())?;
        let all = self.entries.iter();
        Ok(match view {
            View::Keys => all.map(|(key, _)| key.clone()).collect(),
            View::Values => all.map(|(_, value)| value.clone()).collect(),
            View::Items => {
                let pair = |(k, v): &(Value, Value)| heap.tuple(vec![k.clone(), v.clone()]);
                all.map(pair).collect::<Result<_>>()?
            }
        })
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(Text { text: text.into(), safe: false })
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Text { text: text.into(), safe: false })
    }
}

impl Value {
    pub(crate) fn safe(text: String) -> Self {
        Self::Text(Text { text: text.into(), safe: true })
    }

    pub(crate) fn undefined(rule: impl Into<String>) -> Self {
        Self::Undefined(rule.into().into())
    }

    /// A value of JSON, whose depth its parser has bounded.
    pub(crate) fn of_json(json: &serde_json::Value, heap: &Heap) -> Result<Self> {
        Ok(match json {
            serde_json::Value::Null => Self::None,
            serde_json::Value::Bool(value) => Self::Bool(*value),
            serde_json::Value::Number(number) => match number.as_i128() {
                Some(number) => Self::Integer(number),
                None => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => text.as_str().into(),
            serde_json::Value::Array(list) => {
                let values = list.iter().map(|value| Self::of_json(value, heap));
                heap.list(values.collect::<Result<_>>()?)?
            }
            serde_json::Value::Object(map) => {
                let entries = map
                    .iter()
                    .map(|(key, value)| Ok((key.as_str().into(), Self::of_json(value, heap)?)));
                heap.map(entries.collect::<Result<_>>()?)?
            }
        })
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(&text.text),
            _ => None,
        }
    }

    pub(crate) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// A whole number, which a bool is too.
    pub(crate) fn integer(&self) -> Option<i128> {
        match self {
            Self::Integer(number) => Some(*number),
            Self::Bool(value) => Some(i128::from(*value)),
            _ => None,
        }
    }

    pub(crate) fn float(&self) -> Option<f64> {
        match self {
            Self::Float(number) => Some(*number),
            _ => self.integer().map(|n| n as f64),
        }
    }

    /// The items of a list or a tuple.
    pub(crate) fn items(&self) -> Option<&[Value]> {
        match self {
            Self::List(items) | Self::Tuple(items) => Some(&items.values),
            _ => None,
        }
    }

    /// What Python calls its type.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Integer(_) => "int",
            Self::Float(_) => "float",
            Self::Text(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Map(_) => "dict",
            Self::Range(_) => "range",
            Self::View(View::Keys, _) => "dict_keys",
            Self::View(View::Values, _) => "dict_values",
            Self::View(View::Items, _) => "dict_items",
            Self::Object(_) => "object",
            Self::Macro(..) => "Macro",
            Self::Loop(_) => "LoopContext",
            Self::Method(_) => "builtin_function_or_method",
            Self::Function(_) => "function",
        }
    }

    /// How deep lists and maps lie in it.
    fn depth(&self) -> usize {
        match self {
            Self::List(items) | Self::Tuple(items) => items.depth,
            Self::Map(map) | Self::View(_, map) => map.depth,
            Self::Method(method) => method.0.depth(),
            _ => 0,
        }
    }

    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Integer(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Text(text) => !text.text.is_empty(),
            Self::List(items) | Self::Tuple(items) => !items.values.is_empty(),
            Self::Map(map) | Self::View(_, map) => map.len() > 0,
            Self::Range(range) => range.len() > 0,
            _ => true,
        }
    }

    /// Whether both are the same one: Python's `is`.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Undefined(a), Self::Undefined(b)) => Arc::ptr_eq(a, b),
            (Self::None, Self::None) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Integer(a), Self::Integer(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => {
                Arc::ptr_eq(&a.text, &b.text) || (a.text.is_empty() && b.text.is_empty())
            }
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => Arc::ptr_eq(a, b),
            (Self::Map(a), Self::Map(b)) => Arc::ptr_eq(a, b),
            (Self::Object(a), Self::Object(b))
            | (Self::Macro(a, _), Self::Macro(b, _))
            | (Self::Loop(a), Self::Loop(b)) => a == b,
            (Self::Function(a), Self::Function(b)) => a == b,
            _ => false,
        }
    }

    /// The error of using something that is not there; nothing for what is.
    pub(crate) fn defined(&self) -> Result<()> {
        match self {
            Self::Undefined(rule) => Err(Error::failed(rule.to_string())),
            _ => Ok(()),
        }
    }
}

impl Heap {
    pub(crate) fn list(&self, values: Vec<Value>) -> Result<Value> {
        Ok(Value::List(Arc::new(self.items(values, false)?)))
    }

    pub(crate) fn tuple(&self, values: Vec<Value>) -> Result<Value> {
        Ok(Value::Tuple(Arc::new(self.items(values, false)?)))
    }

    /// What `groupby` gives for one key.
    pub(crate) fn group(&self, key: Value, values: Vec<Value>) -> Result<Value> {
        let list = self.list(values)?;
        Ok(Value::Tuple(Arc::new(self.items(vec![key, list], true)?)))
    }

    fn items(&self, values: Vec<Value>, group: bool) -> Result<Items> {
        self.step(values.len() + 1)?;
        let depth = 1 + values.iter().map(Value::depth).max().unwrap_or(0);
        if depth > MAX_DEPTH {
            return Err(Error::budget());
        }
        Ok(Items { values, depth, group })
    }

    /// A dict. Of a key given twice the last value counts, at the first one's place.
    pub(crate) fn map(&self, entries: Vec<(Value, Value)>) -> Result<Value> {
        self.step(4 * entries.len() + 1)?;
        let mut map = Map::default();
        for (key, value) in entries {
            let depth = 1 + key.depth().max(value.depth());
            if depth > MAX_DEPTH {
                return Err(Error::budget());
            }
            map.depth = map.depth.max(depth);
            let found = self.key(&key)?;
            match map.index.get(&found).and_then(|at| map.entries.get_mut(*at)) {
                Some(entry) => entry.1 = value,
                None => {
                    map.index.insert(found, map.entries.len());
                    map.entries.push((key, value));
                }
            }
        }
        Ok(Value::Map(Arc::new(map)))
    }

    /// What a value is found by; lists and maps cannot be.
    pub(crate) fn key(&self, value: &Value) -> Result<Key> {
        self.step(1)?;
        Ok(match value {
            Value::Undefined(_) => Key::Undefined,
            Value::None => Key::None,
            Value::Bool(_) | Value::Integer(_) => Key::Integer(value.integer().unwrap_or(0)),
            Value::Float(number) => {
                let whole = *number as i128;
                if whole as f64 == *number && number.abs() < 1e38 {
                    Key::Integer(whole)
                } else {
                    Key::Float(number.to_bits())
                }
            }
            Value::Text(text) => {
                self.bytes(text.text.len())?;
                Key::Text(text.text.clone())
            }
            Value::Tuple(items) => {
                let keys = items.values.iter().map(|value| self.key(value));
                Key::Tuple(keys.collect::<Result<_>>()?)
            }
            Value::Range(range) => Key::Range(range.start, range.stop, range.step),
            Value::Object(id) | Value::Macro(id, _) | Value::Loop(id) => {
                Key::Other(value.kind(), *id)
            }
            Value::Function(name) => Key::Other(name, 0),
            Value::List(_) | Value::Map(_) | Value::View(..) | Value::Method(_) => {
                return Err(Error::failed(format!("unhashable type: '{}'", value.kind())));
            }
        })
    }
}
