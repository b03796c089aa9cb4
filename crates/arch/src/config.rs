//! Fields of a configuration, read with the checks that a hostile file needs: type, sign, bounds.

use crate::error::Error;
use serde_json::{Map, Value};

/// Bounds far above any model that exists, far below what overflows.
pub(crate) mod cap {
    /// Width of the hidden state.
    pub(crate) const HIDDEN: usize = 1 << 20;
    /// Decoder layers.
    pub(crate) const LAYERS: usize = 1 << 12;
    /// Query heads; also the size of a head.
    pub(crate) const HEADS: usize = 1 << 16;
    /// Query heads times the size of a head.
    pub(crate) const ATTENTION: usize = 1 << 24;
    /// Rows of the embedding.
    pub(crate) const VOCAB: usize = 1 << 24;
    /// Width of the feed-forward.
    pub(crate) const FFN: usize = 1 << 24;
    /// Experts of a layer.
    pub(crate) const EXPERTS: usize = 1 << 10;
    /// Experts of all layers.
    pub(crate) const ALL_EXPERTS: usize = 1 << 17;
    /// Tokens of context, and of a sliding window.
    pub(crate) const CONTEXT: usize = 1 << 31;
}

/// A JSON object of the configuration and where it lies, for messages.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    inside: Option<&'static str>,
}

impl<'a> Fields<'a> {
    pub(crate) fn root(map: &'a Map<String, Value>) -> Self {
        Self { map, inside: None }
    }

    /// The object under `key`; `None` if the key is absent, null or an empty object.
    pub(crate) fn object(&self, key: &'static str) -> Result<Option<Fields<'a>>, Error> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) if map.is_empty() => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map, inside: Some(key) })),
            Some(_) => Err(self.breaks(key, "must be an object")),
        }
    }

    /// The path of `key`, quoted and escaped.
    pub(crate) fn path(&self, key: &str) -> String {
        let path = self.inside.map_or_else(|| key.to_owned(), |i| format!("{i}.{key}"));
        quote(&path)
    }

    /// The error of a value that breaks `rule`.
    pub(crate) fn breaks(&self, key: &str, rule: impl Into<String>) -> Error {
        let value = self.map.get(key).map_or_else(|| "absent".to_owned(), show);
        Error::Value { key: self.path(key), value, rule: rule.into() }
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.map.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// An integer in `low..=high`; `None` if absent. Null is a value that breaks the rule.
    pub(crate) fn integer(
        &self,
        key: &str,
        low: usize,
        high: usize,
    ) -> Result<Option<usize>, Error> {
        let Some(value) = self.map.get(key) else { return Ok(None) };
        let fits = value.as_u64().and_then(|v| usize::try_from(v).ok());
        let inside = fits.filter(|v| (low..=high).contains(v));
        inside
            .map(Some)
            .ok_or_else(|| self.breaks(key, format!("must be an integer from {low} to {high}")))
    }

    /// An integer in `1..=high` that must be given.
    pub(crate) fn size(&self, key: &str, high: usize) -> Result<usize, Error> {
        self.integer(key, 1, high)?.ok_or_else(|| Error::MissingKey { key: self.path(key) })
    }

    /// An integer in `1..=high`; `None` if absent or null.
    pub(crate) fn nullable_size(&self, key: &str, high: usize) -> Result<Option<usize>, Error> {
        if self.is_null(key) { Ok(None) } else { self.integer(key, 1, high) }
    }

    /// A boolean, `default` if absent.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, Error> {
        match self.map.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.breaks(key, "must be true or false")),
        }
    }

    /// A finite number; `None` if absent. Null is a value that breaks the rule.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        let Some(value) = self.map.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|v| v.is_finite());
        number.map(Some).ok_or_else(|| self.breaks(key, "must be a finite number"))
    }

    /// A finite number; `None` if absent or null.
    pub(crate) fn nullable_number(&self, key: &str) -> Result<Option<f64>, Error> {
        if self.is_null(key) { Ok(None) } else { self.number(key) }
    }

    /// A string; `None` if absent or null.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.breaks(key, "must be a string")),
        }
    }

    /// A list of strings; `None` if absent or null.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, Error> {
        let list = match self.map.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value.as_array(),
        };
        let texts = list.and_then(|l| l.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.map(Some).ok_or_else(|| self.breaks(key, "must be a list of strings"))
    }
}

/// A name of hostile origin, quoted, shortened, and escaped so that it cannot steer a terminal.
pub(crate) fn quote(name: &str) -> String {
    let short: String = name.chars().take(200).collect();
    let more = if short.len() < name.len() { "..." } else { "" };
    format!("{short:?}{more}")
}

/// A value of hostile origin for a message: scalars as they are, containers by their size.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(map) => format!("an object of {} keys", map.len()),
        scalar => scalar.to_string(),
    }
}
