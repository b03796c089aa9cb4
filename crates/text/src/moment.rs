//! A moment as C's `strftime` writes it, in UTC and English: what chat templates put in a prompt.

use std::fmt::Write;

const DAY: i64 = 86_400;
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
/// Years of the calendar that are written: 1 to 9999, in seconds since 1970.
const RANGE: std::ops::Range<i64> = -62_135_596_800..253_402_300_800;
const MAX_FORMAT: usize = 256;

/// Writes the moment `seconds` after 1970 in a format of `strftime`.
///
/// # Errors
/// What of the format, or of the moment, cannot be written.
pub fn strftime(seconds: i64, format: &str) -> Result<String, String> {
    if format.len() > MAX_FORMAT {
        return Err(format!("strftime_now: the format has more than {MAX_FORMAT} bytes"));
    }
    if !RANGE.contains(&seconds) {
        return Err("strftime_now: the year is not between 1 and 9999".into());
    }
    let moment = Moment::new(seconds);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (mut letter, mut padded) = (chars.next(), true);
        if letter == Some('-') {
            (letter, padded) = (chars.next(), false);
        }
        let known = letter.is_some_and(|letter| moment.write(letter, padded, &mut out).is_some());
        if !known {
            let letter = letter.map(|c| c.escape_debug().to_string()).unwrap_or_default();
            return Err(format!("strftime_now: %{letter} is not known here"));
        }
    }
    Ok(out)
}

struct Moment {
    year: i64,
    /// From 0.
    month: usize,
    /// From 1.
    day: i64,
    /// From 1.
    day_of_year: i64,
    /// From 0, a Thursday.
    weekday: usize,
    second: i64,
}

impl Moment {
    fn new(seconds: i64) -> Self {
        let days = seconds.div_euclid(DAY);
        // A year at or a little before the one that holds the day, and on from there.
        let mut year = 1970 + days.div_euclid(366).min(days.div_euclid(365));
        while days_before(year + 1) <= days {
            year += 1;
        }
        let of_year = days - days_before(year);
        let (mut month, mut day) = (0, of_year);
        while day >= length(year, month) {
            day -= length(year, month);
            month += 1;
        }
        Self {
            year,
            month,
            day: day + 1,
            day_of_year: of_year + 1,
            weekday: days.rem_euclid(7) as usize,
            second: seconds.rem_euclid(DAY),
        }
    }

    fn write(&self, letter: char, padded: bool, out: &mut String) -> Option<()> {
        let (hour, minute, second) = (self.second / 3600, self.second / 60 % 60, self.second % 60);
        let half = if hour % 12 == 0 { 12 } else { hour % 12 };
        let number = |value: i64, width: usize| match padded {
            true => format!("{value:0width$}"),
            false => value.to_string(),
        };
        let month = MONTHS[self.month];
        let text = match letter {
            'Y' => number(self.year, 4),
            'y' => number(self.year % 100, 2),
            'm' => number(self.month as i64 + 1, 2),
            'B' => month.into(),
            'b' | 'h' => month[..3].into(),
            'd' => number(self.day, 2),
            'e' if padded => format!("{:2}", self.day),
            'e' => self.day.to_string(),
            'j' => number(self.day_of_year, 3),
            'A' => DAYS[self.weekday].into(),
            'a' => DAYS[self.weekday][..3].into(),
            'w' => ((self.weekday + 4) % 7).to_string(),
            'u' => ((self.weekday + 3) % 7 + 1).to_string(),
            'H' => number(hour, 2),
            'I' => number(half, 2),
            'M' => number(minute, 2),
            'S' => number(second, 2),
            'p' => if hour < 12 { "AM" } else { "PM" }.into(),
            'F' => format!("{:04}-{:02}-{:02}", self.year, self.month + 1, self.day),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'R' => format!("{hour:02}:{minute:02}"),
            'D' => format!("{:02}/{:02}/{:02}", self.month + 1, self.day, self.year % 100),
            'Z' | 'z' => String::new(),
            'n' => "\n".into(),
            't' => "\t".into(),
            '%' => "%".into(),
            _ => return None,
        };
        out.write_str(&text).ok()
    }
}

/// Days from 1970 to the first of a year.
fn days_before(year: i64) -> i64 {
    let (y, since) = (year - 1, |y: i64| y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400));
    (year - 1970) * 365 + since(y) - since(1969)
}

fn length(year: i64, month: usize) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        1 if leap => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::strftime;

    /// Against Python's datetime.
    #[test]
    fn moments_are_written_as_by_strftime() {
        let all = "%Y %y %m %-m %B %b %d %-d %e %j %A %a %w %u %H %I %-I %M %S %p %F %T %R %D %%";
        for (seconds, expected) in [
            (
                0,
                "1970 70 01 1 January Jan 01 1  1 001 Thursday Thu 4 4 00 12 12 00 00 AM 1970-01-01 00:00:00 00:00 01/01/70 %",
            ),
            (
                1_721_952_000,
                "2024 24 07 7 July Jul 26 26 26 208 Friday Fri 5 5 00 12 12 00 00 AM 2024-07-26 00:00:00 00:00 07/26/24 %",
            ),
            (
                951_782_399,
                "2000 00 02 2 February Feb 28 28 28 059 Monday Mon 1 1 23 11 11 59 59 PM 2000-02-28 23:59:59 23:59 02/28/00 %",
            ),
            (
                951_782_400,
                "2000 00 02 2 February Feb 29 29 29 060 Tuesday Tue 2 2 00 12 12 00 00 AM 2000-02-29 00:00:00 00:00 02/29/00 %",
            ),
            (
                -1,
                "1969 69 12 12 December Dec 31 31 31 365 Wednesday Wed 3 3 23 11 11 59 59 PM 1969-12-31 23:59:59 23:59 12/31/69 %",
            ),
            (
                4_107_542_399,
                "2100 00 02 2 February Feb 28 28 28 059 Sunday Sun 0 7 23 11 11 59 59 PM 2100-02-28 23:59:59 23:59 02/28/00 %",
            ),
            (
                1_893_499_199,
                "2030 30 01 1 January Jan 01 1  1 001 Tuesday Tue 2 2 11 11 11 59 59 AM 2030-01-01 11:59:59 11:59 01/01/30 %",
            ),
        ] {
            assert_eq!(strftime(seconds, all).unwrap(), expected);
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut last = String::new();
        for day in -719_162..2_932_897 {
            // A tenth of the days would do; the ends must not be left out.
            if day % 7 != 0 && (-719_000..2_932_000).contains(&day) {
                continue;
            }
            let date = strftime(day * super::DAY, "%Y-%m-%d %j").unwrap();
            assert!(date > last, "{last} {date}");
            last = date;
        }
        assert_eq!(last, "9999-12-31 365");
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        for (seconds, format) in [(0, "%Q"), (0, "%"), (0, "%-"), (i64::MAX, "%Y"), (i64::MIN, "")]
        {
            assert!(strftime(seconds, format).is_err(), "{seconds} {format}");
        }
        assert!(strftime(0, &"%Y".repeat(200)).is_err());
    }
}
