//! Words beside marks, where they cover nothing.

use super::chart::{BOTTOM, LEFT};

/// A rectangle that is taken: left, top, right, bottom.
pub(crate) type Rect = [f64; 4];

/// Whether two rectangles do not touch.
pub(crate) fn apart(one: &Rect, other: &Rect) -> bool {
    one[2] < other[0] || other[2] < one[0] || one[3] < other[1] || other[3] < one[1]
}

/// About how wide words are.
pub(crate) fn width(words: &str) -> f64 {
    words.chars().count() as f64 * 6.7
}

/// A place beside a mark that covers nothing, its anchor, and what it takes.
pub(crate) fn free(
    [x, y]: [f64; 2],
    radius: f64,
    name: &str,
    taken: &[Rect],
    [right, bottom]: [f64; 2],
) -> Option<(f64, f64, &'static str, Rect)> {
    let (wide, gap) = (width(name), radius + 4.0);
    let beside = [
        (x + gap, y + 4.0, "start", x + gap),
        (x - gap, y + 4.0, "end", x - gap - wide),
        (x, y - gap, "middle", x - wide / 2.0),
        (x, y + gap + 9.0, "middle", x - wide / 2.0),
        (x + gap, y - 10.0, "start", x + gap),
        (x + gap, y + 16.0, "start", x + gap),
        (x - gap, y - 10.0, "end", x - gap - wide),
        (x - gap, y + 16.0, "end", x - gap - wide),
    ];
    beside.into_iter().find_map(|(at, base, anchor, from)| {
        let room = [from, base - 10.0, from + wide, base + 3.0];
        let inside =
            room[0] > LEFT && room[2] < right && room[1] > 0.0 && room[3] < bottom - BOTTOM;
        (inside && taken.iter().all(|other| apart(&room, other)))
            .then_some((at, base, anchor, room))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_covers_nothing_and_is_left_out_where_there_is_no_room() {
        let size = [720.0, 420.0];
        let (x, _, anchor, _) = free([300.0, 200.0], 4.0, "linear", &[], size).unwrap();
        assert_eq!((x, anchor), (308.0, "start"));
        let right = [304.0, 150.0, 400.0, 250.0];
        assert_eq!(free([300.0, 200.0], 4.0, "linear", &[right], size).unwrap().2, "end");
        let all = [0.0, 0.0, 720.0, 420.0];
        assert_eq!(free([300.0, 200.0], 4.0, "linear", &[all], size), None);
    }
}
