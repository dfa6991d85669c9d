//! COPY text made into COPY's binary form, for tables whose columns all are of the types here.
//!
//! What a server does longest in a load is to take text apart, and one session does that on one processor: 5 million rows of
//! a number, three texts and a double take it 5.1 s, and 3.1 s in binary form. To take them apart here costs 0.9 s.
//!
//! Only what a server writes by itself is converted, and exactly: whoever is given anything else (an infinite date, a year
//! before Christ, a numeric that is no number, a row with other columns) leaves it in text, and the server says what it
//! thinks of it.

use bytes::{BufMut, Bytes, BytesMut};
use chrono::NaiveDate;

/// What a binary COPY begins with: its signature, no flags, no extension.
pub(super) const HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What it ends with, in the place of a number of columns.
pub(super) const END: &[u8] = &(-1_i16).to_be_bytes();

/// How values of a type are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    Text,
    Jsonb,
    Uuid,
    Date,
    Timestamp,
    TimestampTz,
}

impl Kind {
    /// By the number of a built-in type, the same on every server.
    fn of(oid: u32) -> Option<Self> {
        Some(match oid {
            16 => Self::Bool,
            20 => Self::Int8,
            21 => Self::Int2,
            23 => Self::Int4,
            // text, json, bpchar and varchar: what they may hold is looked at by the server in either form.
            25 | 114 | 1042 | 1043 => Self::Text,
            26 => Self::Oid,
            700 => Self::Float4,
            701 => Self::Float8,
            1082 => Self::Date,
            1114 => Self::Timestamp,
            1184 => Self::TimestampTz,
            1700 => Self::Numeric,
            2950 => Self::Uuid,
            3802 => Self::Jsonb,
            _ => return None,
        })
    }

    /// `None`: not as a server writes it.
    fn put(self, text: &[u8], into: &mut BytesMut) -> Option<()> {
        match self {
            Self::Bool => into.put_u8(match text {
                b"t" => 1,
                b"f" => 0,
                _ => return None,
            }),
            Self::Int2 => into.put_i16(number(text)?),
            Self::Int4 => into.put_i32(number(text)?),
            Self::Int8 => into.put_i64(number(text)?),
            Self::Oid => into.put_u32(number(text)?),
            Self::Float4 => into.put_f32(number(text).filter(|value: &f32| value.is_finite())?),
            Self::Float8 => into.put_f64(number(text).filter(|value: &f64| value.is_finite())?),
            Self::Numeric => numeric(text, into)?,
            Self::Text => plain(text, into)?,
            Self::Jsonb => {
                into.put_u8(1);
                plain(text, into)?;
            }
            Self::Uuid => into.put_u128(uuid(text)?),
            Self::Date => {
                let (days, rest) = date(text)?;
                into.put_i32(rest.is_empty().then_some(days)?);
            }
            Self::Timestamp => {
                let (instant, rest) = timestamp(text)?;
                into.put_i64(rest.is_empty().then_some(instant)?);
            }
            Self::TimestampTz => {
                let (instant, rest) = timestamp(text)?;
                into.put_i64(instant - offset(rest)?);
            }
        }
        Some(())
    }
}

/// The columns of a table's rows, in their order.
#[derive(Debug, Clone)]
pub struct Columns(Vec<Kind>);

/// Rows in binary form.
#[derive(Debug)]
pub(super) struct Converted {
    pub bytes: Bytes,
    pub rows: u64,
    /// So much of the text they were; a row that is cut was left.
    pub taken: usize,
}

impl Columns {
    /// By the numbers of their types. `None`: one of them is always sent as text.
    pub fn of(types: &[u32]) -> Option<Self> {
        let kinds: Option<Vec<_>> = types.iter().map(|oid| Kind::of(*oid)).collect();
        kinds.filter(|kinds| !kinds.is_empty()).map(Self)
    }

    /// The whole rows at the beginning of a text. `None`: there is none, or one of them has to stay text.
    pub(super) fn convert(&self, text: &[u8]) -> Option<Converted> {
        let taken = memchr::memrchr(b'\n', text)? + 1;
        let text = &text[..taken];
        // In text it would end a row.
        if memchr::memchr(b'\r', text).is_some() {
            return None;
        }
        let escapes = memchr::memchr(b'\\', text).is_some();
        let mut into = BytesMut::with_capacity(taken + taken / 2);
        let (mut ends, mut begin, mut rows) = (memchr::memchr2_iter(b'\t', b'\n', text), 0, 0);
        let number = i16::try_from(self.0.len()).ok()?;
        while begin < taken {
            into.put_i16(number);
            for (column, kind) in (1..).zip(&self.0) {
                let end = ends.next()?;
                if (text[end] == b'\n') != (column == self.0.len()) {
                    return None;
                }
                let value = &text[begin..end];
                begin = end + 1;
                if escapes && value == b"\\N" {
                    into.put_i32(-1);
                    continue;
                }
                let at = into.len();
                into.put_i32(0);
                if *kind == Kind::Text && !escapes {
                    into.put_slice(value);
                } else {
                    kind.put(value, &mut into)?;
                }
                let length = i32::try_from(into.len() - at - 4).ok()?;
                into[at..at + 4].copy_from_slice(&length.to_be_bytes());
            }
            rows += 1;
        }
        Some(Converted { bytes: into.freeze(), rows, taken })
    }
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Without the backslashes that a server puts into text.
fn plain(mut text: &[u8], into: &mut BytesMut) -> Option<()> {
    while let Some(at) = memchr::memchr(b'\\', text) {
        into.put_slice(&text[..at]);
        into.put_u8(match text.get(at + 1)? {
            b'\\' => b'\\',
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 11,
            b'f' => 12,
            b'r' => b'\r',
            _ => return None,
        });
        text = &text[at + 2..];
    }
    into.put_slice(text);
    Some(())
}

fn uuid(text: &[u8]) -> Option<u128> {
    if text.len() != 36 || [8, 13, 18, 23].iter().any(|at| text[*at] != b'-') {
        return None;
    }
    let mut digits = text.iter().filter(|digit| **digit != b'-').map(|digit| char::from(*digit).to_digit(16));
    // Another hyphen would leave fewer of them.
    (0..32).try_fold(0, |value, _| Some(value << 4 | u128::from(digits.next()??)))
}

/// Digits, as many as there are.
fn digits(text: &[u8]) -> Option<u32> {
    text.iter().try_fold(0_u32, |value, digit| {
        digit.is_ascii_digit().then(|| value.checked_mul(10)?.checked_add(u32::from(digit - b'0')))?
    })
}

/// Days since the beginning of 2000, and what follows `2026-07-31`.
fn date(text: &[u8]) -> Option<(i32, &[u8])> {
    let (date, rest) = text.split_at_checked(10)?;
    let [year @ .., b'-', month_tens, month_ones, b'-', day_tens, day_ones] = date else { return None };
    let (month, day) = (digits(&[*month_tens, *month_ones])?, digits(&[*day_tens, *day_ones])?);
    let year = digits(year).filter(|year| *year > 0)?;
    let date = NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month, day)?;
    let days = date.signed_duration_since(NaiveDate::from_ymd_opt(2000, 1, 1)?).num_days();
    Some((i32::try_from(days).ok()?, rest))
}

/// Microseconds since the beginning of 2000, and what follows `2026-07-31 12:00:00.123456`.
fn timestamp(text: &[u8]) -> Option<(i64, &[u8])> {
    let (days, rest) = date(text)?;
    let (time, mut rest) = rest.split_at_checked(9)?;
    let [b' ', hour_tens, hour_ones, b':', minute_tens, minute_ones, b':', second_tens, second_ones] = time else {
        return None;
    };
    let part = |tens, ones, most| digits(&[tens, ones]).filter(|part| *part <= most).map(i64::from);
    let (hours, minutes) = (part(*hour_tens, *hour_ones, 23)?, part(*minute_tens, *minute_ones, 59)?);
    let seconds = part(*second_tens, *second_ones, 59)?;
    let mut micros = ((i64::from(days) * 24 + hours) * 60 + minutes) * 60 + seconds;
    micros *= 1_000_000;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let length = fraction.iter().take_while(|digit| digit.is_ascii_digit()).count();
        let missing = 6_u32.checked_sub(u32::try_from(length).ok()?)?;
        micros += i64::from(digits(&fraction[..length])?) * 10_i64.pow(missing);
        rest = &fraction[length..];
    }
    Some((micros, rest))
}

/// Microseconds east of Greenwich: `+02`, `-03:30`, `+00:53:28`.
fn offset(text: &[u8]) -> Option<i64> {
    let (sign, rest) = text.split_first()?;
    let sign = match sign {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (mut seconds, mut weight) = (0, 3600);
    for part in rest.split(|byte| *byte == b':') {
        if part.len() != 2 || weight == 0 {
            return None;
        }
        seconds += i64::from(digits(part)?) * weight;
        weight /= 60;
    }
    Some(sign * seconds * 1_000_000)
}

/// Four decimal digits are one of a numeric, counted from the point; zeros at its ends do not matter.
fn numeric(text: &[u8], into: &mut BytesMut) -> Option<()> {
    const NEGATIVE: u16 = 0x4000;
    let (sign, text) = text.strip_prefix(b"-").map_or((0, text), |rest| (NEGATIVE, rest));
    let point = memchr::memchr(b'.', text);
    let (whole, fraction) = point.map_or((text, &b""[..]), |at| (&text[..at], &text[at + 1..]));
    if whole.is_empty() {
        return None;
    }
    let groups = whole.len().div_ceil(4);
    into.put_u16(u16::try_from(groups + fraction.len().div_ceil(4)).ok()?);
    into.put_i16(i16::try_from(groups - 1).ok()?);
    into.put_u16(sign);
    into.put_u16(u16::try_from(fraction.len()).ok()?);
    let (first, others) = whole.split_at(whole.len() - (groups - 1) * 4);
    for group in std::iter::once(first).chain(others.chunks(4)) {
        into.put_u16(u16::try_from(digits(group)?).ok()?);
    }
    for group in fraction.chunks(4) {
        let missing = u32::try_from(4 - group.len()).ok()?;
        into.put_u16(u16::try_from(digits(group)? * 10_u32.pow(missing)).ok()?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(types: &[u32], text: &str) -> Option<(Vec<u8>, u64, usize)> {
        let converted = Columns::of(types)?.convert(text.as_bytes())?;
        Some((converted.bytes.to_vec(), converted.rows, converted.taken))
    }

    #[test]
    fn whole_rows_are_converted_and_a_cut_one_waits() {
        let bytes =
            [&[0, 2, 0, 0, 0, 4, 0, 0, 1, 0, 0, 0, 0, 2][..], b"a\t", &[0, 2, 255, 255, 255, 255, 0, 0, 0, 0]].concat();
        assert_eq!(converted(&[23, 25], "256\ta\\t\n\\N\t\n3\tb"), Some((bytes, 2, 12)));
        assert_eq!(converted(&[23, 25], "256\ta"), None);
    }

    #[test]
    fn what_a_server_would_not_write_so_stays_text() {
        for (kind, text) in [
            (23, "2147483648"),
            (23, ""),
            (23, "1\t2"),
            (23, "1\r"),
            (25, "\\x41"),
            (25, "\\"),
            (16, "true"),
            (701, "NaN"),
            (701, "1e400"),
            (1700, "NaN"),
            (1700, ".5"),
            (1700, "1e5"),
            (1082, "infinity"),
            (1082, "0044-03-15 BC"),
            (1082, "12026-01-01"),
            (1082, "0000-01-01"),
            (1114, "2026-01-01"),
            (1114, "2026-01-01 24:00:00"),
            (1114, "2026-01-01 00:00:00.1234567"),
            (1114, "2026-01-01 00:00:00+00"),
            (1184, "2026-01-01 00:00:00"),
            (1184, "2026-01-01 00:00:00+5"),
            (2950, "00000000-0000-0000-0000-00000000000-"),
        ] {
            assert_eq!(converted(&[kind], &format!("{text}\n")), None, "{kind} {text}");
        }
        assert!(Columns::of(&[23, 1007]).is_none() && Columns::of(&[]).is_none());
    }
}
