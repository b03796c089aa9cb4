//! The token before each text and the one after it: a `post_processor`, or `add_bos_token` and
//! `add_eos_token`.

use serde_json::{Value as Json, json};

/// The ids of what is put around a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) before: Option<u64>,
    pub(super) after: Option<u64>,
}

impl Marks {
    /// Those of a `post_processor`.
    ///
    /// # Errors
    /// If it puts more than a token before or after a text, or is of a kind that is not known.
    pub(super) fn of(post_processor: &Json) -> Result<Self, String> {
        let get = |name: &str| post_processor.get(name).unwrap_or(&Json::Null);
        match get("type").as_str() {
            None if post_processor.is_null() => Ok(Self::default()),
            // It moves offsets.
            Some("ByteLevel") => Ok(Self::default()),
            Some("Sequence") => {
                let parts = get("processors").as_array().into_iter().flatten();
                parts.map(Self::of).try_fold(Self::default(), |all, part| {
                    let part = part?;
                    let one = |a: Option<u64>, b: Option<u64>| match (a, b) {
                        (Some(_), Some(_)) => Err(too_many()),
                        (a, b) => Ok(a.or(b)),
                    };
                    let (before, after) =
                        (one(all.before, part.before)?, one(all.after, part.after)?);
                    Ok(Self { before, after })
                })
            }
            Some("RobertaProcessing" | "BertProcessing") => {
                let id = |name: &str| get(name).get(1).and_then(Json::as_u64);
                Ok(Self { before: id("cls"), after: id("sep") })
            }
            Some("TemplateProcessing") => Self::of_template(post_processor),
            _ => Err(format!(
                "its post_processor is a {}, which no key of a GGUF file says",
                get("type")
            )),
        }
    }

    fn of_template(template: &Json) -> Result<Self, String> {
        let pieces = template.get("single").and_then(Json::as_array);
        let (mut marks, mut seen) = (Self::default(), false);
        for piece in pieces.into_iter().flatten() {
            let Some(name) = piece.get("SpecialToken").and_then(|t| t.get("id")) else {
                seen = true;
                continue;
            };
            let name = name.as_str().unwrap_or_default();
            let token = template.get("special_tokens").and_then(|all| all.get(name));
            let ids = token.and_then(|token| token.get("ids")).and_then(Json::as_array);
            let [id] = ids.map_or(&[][..], Vec::as_slice) else { return Err(too_many()) };
            let place = if seen { &mut marks.after } else { &mut marks.before };
            if place
                .replace(id.as_u64().ok_or("an id of its post_processor is no count")?)
                .is_some()
            {
                return Err(too_many());
            }
        }
        Ok(marks)
    }

    /// The `post_processor` that puts them; `text` is how a token is spelled.
    pub(super) fn post_processor(self, text: &dyn Fn(u64) -> String) -> Json {
        if self == Self::default() {
            return Json::Null;
        }
        let special = |id: Option<u64>, kind: u8| {
            id.map(|id| json!({ "SpecialToken": { "id": text(id), "type_id": kind } }))
        };
        let one = |name: &str, kind: u8| -> Vec<Json> {
            let sequence = json!({ "Sequence": { "id": name, "type_id": kind } });
            let around = [special(self.before, kind), Some(sequence), special(self.after, kind)];
            around.into_iter().flatten().collect()
        };
        let entry =
            |id: u64| (text(id), json!({ "id": text(id), "ids": [id], "tokens": [text(id)] }));
        let ids = self.before.into_iter().chain(self.after);
        let pair = [one("A", 0), one("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": one("A", 0),
            "pair": pair,
            "special_tokens": Json::Object(ids.map(entry).collect()),
        })
    }
}

fn too_many() -> String {
    "its post_processor puts more than a token before or after a text, and llama.cpp puts one"
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(id: u64) -> String {
        format!("<{id}>")
    }

    #[test]
    fn what_is_put_around_a_text_is_written_and_read() {
        for (before, after) in [(None, None), (Some(1), None), (None, Some(2)), (Some(1), Some(2))]
        {
            let marks = Marks { before, after };
            let written = marks.post_processor(&text);
            assert_eq!(Marks::of(&written).unwrap(), marks);
            let bytes = json!({ "type": "ByteLevel" });
            let both = json!({ "type": "Sequence", "processors": [bytes, written] });
            assert_eq!(Marks::of(&both).unwrap(), marks);
        }
        let roberta = json!({ "type": "RobertaProcessing", "cls": ["<s>", 3], "sep": ["</s>", 4] });
        assert_eq!(Marks::of(&roberta).unwrap(), Marks { before: Some(3), after: Some(4) });
    }

    #[test]
    fn what_llama_cpp_cannot_put_is_refused() {
        let mut two = Marks { before: Some(1), after: None }.post_processor(&text);
        let first = two["single"][0].clone();
        two["single"].as_array_mut().unwrap().insert(0, first);
        assert!(Marks::of(&two).unwrap_err().contains("more than a token"));
        let error = Marks::of(&json!({ "type": "Odd" })).unwrap_err();
        assert!(error.contains("\"Odd\""), "{error}");
    }
}
