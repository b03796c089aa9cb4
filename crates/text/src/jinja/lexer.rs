//! The signs of a template: text, tags, and what is in them, as jinja2 with `trim_blocks` and
//! `lstrip_blocks` reads them.

use super::{Error, Result};

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    Data(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(String),
    Text(String),
    Integer(i128),
    Float(f64),
    Sign(&'static str),
    End,
}

impl Token {
    /// How an error names it.
    pub(crate) fn described(&self) -> String {
        match self {
            Self::Data(_) => "text".into(),
            Self::VariableBegin => "{{".into(),
            Self::VariableEnd => "end of print statement".into(),
            Self::BlockBegin => "{%".into(),
            Self::BlockEnd => "end of statement block".into(),
            Self::Name(name) => name.clone(),
            Self::Text(_) => "string".into(),
            Self::Integer(n) => n.to_string(),
            Self::Float(n) => n.to_string(),
            Self::Sign(sign) => (*sign).into(),
            Self::End => "end of template".into(),
        }
    }
}

/// Longer ones first.
const SIGNS: [&str; 25] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",",
];

/// What Python's `str.isspace` holds for white space.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The tokens of a template, each with its line.
pub(crate) fn tokens(source: &str) -> Result<Vec<(Token, usize)>> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer =
        Lexer { rest: source, line: 1, line_starts: true, tokens: Vec::new(), open: Vec::new() };
    while !lexer.rest.is_empty() {
        lexer.text()?;
    }
    lexer.push(Token::End);
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    /// Whether what was read last ended with a line's end.
    line_starts: bool,
    tokens: Vec<(Token, usize)>,
    /// Brackets to be closed.
    open: Vec<&'static str>,
}

impl<'a> Lexer<'a> {
    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    fn failed(&self, rule: impl Into<String>) -> Error {
        Error::failed(rule).at(self.line)
    }

    /// Goes so many bytes ahead.
    fn skip(&mut self, bytes: usize) -> &'a str {
        let (read, rest) = self.rest.split_at(bytes);
        self.line += read.bytes().filter(|b| *b == b'\n').count();
        if !read.is_empty() {
            self.line_starts = read.ends_with('\n');
        }
        self.rest = rest;
        read
    }

    fn skip_space(&mut self) {
        self.skip(space(self.rest));
    }

    /// Text up to the next tag, and that tag.
    fn text(&mut self) -> Result<()> {
        // Looked for together: a tag that never comes would be looked for to the end from every other.
        let opens =
            |at: &usize| matches!(self.rest.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#'));
        let Some(at) = self.rest.match_indices('{').map(|(at, _)| at).find(opens) else {
            let text = self.rest.to_owned();
            self.push(Token::Data(text));
            self.skip(self.rest.len());
            return Ok(());
        };
        let kind = self.rest.as_bytes()[at + 1];
        let sign = self.rest[at + 2..].chars().next().filter(|c| matches!(c, '-' | '+'));
        let text = self.stripped(at, sign, kind != b'{');
        if !text.is_empty() {
            self.push(Token::Data(text.to_owned()));
        }
        self.skip(at + 2);
        if kind == b'%'
            && let Some(bytes) = raw(self.rest)
        {
            self.skip(bytes);
            return self.raw();
        }
        self.skip(usize::from(sign.is_some()));
        match kind {
            b'{' => self.variable(),
            b'%' => self.block(),
            _ => self.comment(),
        }
    }

    /// The text before a tag at `at`, as the tag leaves it.
    fn stripped(&self, at: usize, sign: Option<char>, is_block: bool) -> &'a str {
        let text = &self.rest[..at];
        if sign == Some('-') {
            return text.trim_end_matches(is_space);
        }
        let line = text.rfind('\n').map_or(0, |n| n + 1);
        let blank = text[line..].chars().all(is_space);
        if sign.is_none() && is_block && blank && (line > 0 || self.line_starts) {
            return &text[..line];
        }
        text
    }

    /// Where a block's end is, its bytes with what it takes along.
    fn block_end(&self, close: &str) -> Option<usize> {
        if let Some(rest) = self.rest.strip_prefix(close) {
            return Some(close.len() + usize::from(rest.starts_with('\n')));
        }
        if self.rest.strip_prefix('+').is_some_and(|rest| rest.starts_with(close)) {
            return Some(1 + close.len());
        }
        let rest = self.rest.strip_prefix('-')?.strip_prefix(close)?;
        Some(1 + close.len() + space(rest))
    }

    fn comment(&mut self) -> Result<()> {
        let Some(at) = self.rest.find("#}") else {
            return Err(self.failed("Missing end of comment tag"));
        };
        let sign = self.rest[..at].ends_with(['-', '+']);
        self.skip(at - usize::from(sign));
        let end = self.block_end("#}").unwrap_or(0);
        self.skip(end);
        Ok(())
    }

    fn raw(&mut self) -> Result<()> {
        let mut from = 0;
        while let Some(at) = self.rest[from..].find("{%").map(|at| from + at) {
            let tag = &self.rest[at + 2..];
            let sign = tag.chars().next().filter(|c| matches!(c, '-' | '+'));
            let inner = tag[usize::from(sign.is_some())..].trim_start_matches(is_space);
            if let Some(end) = inner.strip_prefix("endraw") {
                let end = end.trim_start_matches(is_space);
                let closes = ["%}", "-%}", "+%}"].iter().any(|close| end.starts_with(close));
                if closes {
                    let text = self.stripped(at, sign, true).to_owned();
                    if !text.is_empty() {
                        self.push(Token::Data(text));
                    }
                    self.skip(self.rest.len() - end.len());
                    let end = self.block_end("%}").unwrap_or(0);
                    self.skip(end);
                    return Ok(());
                }
            }
            from = at + 2;
        }
        Err(self.failed("Missing end of raw directive"))
    }

    fn variable(&mut self) -> Result<()> {
        self.push(Token::VariableBegin);
        loop {
            self.skip_space();
            if self.open.is_empty() {
                let trims = self.rest.strip_prefix('-').is_some_and(|r| r.starts_with("}}"));
                if trims || self.rest.starts_with("}}") {
                    self.push(Token::VariableEnd);
                    self.skip(2 + usize::from(trims));
                    if trims {
                        self.skip_space();
                    }
                    return Ok(());
                }
            }
            if !self.code()? {
                return Ok(());
            }
        }
    }

    fn block(&mut self) -> Result<()> {
        self.push(Token::BlockBegin);
        loop {
            self.skip_space();
            if self.open.is_empty()
                && let Some(end) = self.block_end("%}")
            {
                self.push(Token::BlockEnd);
                self.skip(end);
                return Ok(());
            }
            if !self.code()? {
                return Ok(());
            }
        }
    }

    /// One token within a tag; `false` at the end of the template, which the parser will name.
    fn code(&mut self) -> Result<bool> {
        let Some(first) = self.rest.chars().next() else { return Ok(false) };
        if first.is_ascii_digit() {
            self.number()?;
        } else if first.is_alphabetic() || first == '_' {
            let name = |c: char| c.is_alphanumeric() || c == '_';
            let end = self.rest.find(|c| !name(c)).unwrap_or(self.rest.len());
            self.push(Token::Name(self.rest[..end].to_owned()));
            self.skip(end);
        } else if matches!(first, '"' | '\'') {
            self.string()?;
        } else {
            let sign = SIGNS.iter().find(|sign| self.rest.starts_with(**sign)).copied();
            let sign = sign.ok_or_else(|| self.failed(format!("unexpected char {first:?}")))?;
            self.balance(sign)?;
            self.push(Token::Sign(sign));
            self.skip(sign.len());
        }
        Ok(true)
    }

    fn balance(&mut self, sign: &'static str) -> Result<()> {
        match sign {
            "(" => self.open.push(")"),
            "[" => self.open.push("]"),
            "{" => self.open.push("}"),
            ")" | "]" | "}" => match self.open.pop() {
                Some(wanted) if wanted == sign => {}
                Some(wanted) => {
                    return Err(self.failed(format!("unexpected '{sign}', expected '{wanted}'")));
                }
                None => return Err(self.failed(format!("unexpected '{sign}'"))),
            },
            _ => {}
        }
        Ok(())
    }

    fn number(&mut self) -> Result<()> {
        let bytes = self.rest.as_bytes();
        let based = match bytes {
            [b'0', b'x' | b'X', ..] => Some(16),
            [b'0', b'o' | b'O', ..] => Some(8),
            [b'0', b'b' | b'B', ..] => Some(2),
            _ => None,
        };
        let large = |lexer: &Self| lexer.failed("a number has more than 127 bits");
        if let Some(base) = based {
            let digit = |c: char| c == '_' || c.is_digit(base);
            let end = self.rest[2..].find(|c| !digit(c)).map_or(self.rest.len(), |n| n + 2);
            let digits = self.rest[2..end].replace('_', "");
            let value = i128::from_str_radix(&digits, base).map_err(|_| large(self))?;
            self.push(Token::Integer(value));
            self.skip(end);
            return Ok(());
        }
        let whole = digits(bytes, 0);
        let mut end = whole;
        // After a point a number is an index: `a.0.1`.
        let after_point = matches!(self.tokens.last(), Some((Token::Sign("."), _)));
        if !after_point {
            if bytes.get(end) == Some(&b'.') && digits(bytes, end + 1) > end + 1 {
                end = digits(bytes, end + 1);
            }
            if matches!(bytes.get(end), Some(b'e' | b'E')) {
                let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
                let exponent = digits(bytes, end + 1 + sign);
                end = if exponent > end + 1 + sign { exponent } else { end };
            }
        }
        let text = self.rest[..end].replace('_', "");
        if end > whole {
            let value = text.parse().map_err(|_| self.failed("a number cannot be read"))?;
            self.push(Token::Float(value));
        } else {
            let value = text.parse().map_err(|_| large(self))?;
            self.push(Token::Integer(value));
        }
        self.skip(end);
        Ok(())
    }

    fn string(&mut self) -> Result<()> {
        let quote = self.rest.as_bytes()[0];
        let bytes = self.rest.as_bytes();
        let mut end = 1;
        loop {
            match bytes.get(end) {
                None => return Err(self.failed("a string has no end")),
                Some(b'\\') => end += 2,
                Some(b) if *b == quote => break,
                Some(_) => end += 1,
            }
        }
        let text = unescaped(&self.rest[1..end]).map_err(|rule| self.failed(rule))?;
        self.push(Token::Text(text));
        self.skip(end + 1);
        Ok(())
    }
}

/// Bytes of the white space that a text begins with.
fn space(text: &str) -> usize {
    text.len() - text.trim_start_matches(is_space).len()
}

/// Bytes after `{%` that make it the begin of raw text.
fn raw(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix(['-', '+']).unwrap_or(rest).trim_start_matches(is_space);
    let end = inner.strip_prefix("raw")?.trim_start_matches(is_space);
    match end.strip_prefix("-%}") {
        Some(after) => Some(rest.len() - after.trim_start_matches(is_space).len()),
        None => Some(rest.len() - end.strip_prefix("%}")?.len()),
    }
}

/// Where the digits that begin at `at` end; single underscores may be between them.
fn digits(bytes: &[u8], mut at: usize) -> usize {
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    while digit(at) || (at > 0 && bytes.get(at) == Some(&b'_') && digit(at - 1) && digit(at + 1)) {
        at += 1;
    }
    at
}

/// What a literal of Python stands for.
fn unescaped(literal: &str) -> std::result::Result<String, String> {
    let mut text = String::with_capacity(literal.len());
    let mut chars = literal.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        let Some(c) = chars.next() else { break };
        match c {
            '\n' => {}
            'n' => text.push('\n'),
            't' => text.push('\t'),
            'r' => text.push('\r'),
            'a' => text.push('\u{7}'),
            'b' => text.push('\u{8}'),
            'f' => text.push('\u{c}'),
            'v' => text.push('\u{b}'),
            '\\' | '\'' | '"' => text.push(c),
            'x' | 'u' | 'U' => {
                let count = [('x', 2), ('u', 4), ('U', 8)].iter().find(|(name, _)| *name == c);
                let count = count.map_or(0, |(_, count)| *count);
                let number: String = chars.by_ref().take(count).collect();
                let whole = number.len() == count && number.bytes().all(|b| b.is_ascii_hexdigit());
                let code = u32::from_str_radix(&number, 16).ok().filter(|_| whole);
                let code = code.ok_or_else(|| format!("truncated \\{c} escape in a string"))?;
                let made = char::from_u32(code);
                text.push(made.ok_or_else(|| format!("\\{c}{number} is no character"))?);
            }
            'N' => return Err("characters by name (\\N) are not known here".into()),
            '0'..='7' => {
                let mut value = c.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = chars.peek().and_then(|c| c.to_digit(8)) else { break };
                    value = value * 8 + digit;
                    chars.next();
                }
                text.extend(char::from_u32(value));
            }
            c if c.is_ascii() => text.extend(['\\', c]),
            // Python escapes these before it reads the escapes, so that the backslash is one.
            c => text += &escaped(c),
        }
    }
    Ok(text)
}

/// A character as Python writes one that it cannot print.
pub(crate) fn escaped(c: char) -> String {
    match c as u32 {
        code @ ..=0xff => format!("\\x{code:02x}"),
        code @ ..=0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    }
}
