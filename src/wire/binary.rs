//! Values in binary format, from and to texts as PostgreSQL's output functions write them.

use std::net::IpAddr;

use walrelay_proto::Lsn;

use super::messages::ColumnType;

/// Seconds from 1970 to 2000, where PostgreSQL counts from.
const EPOCH: i64 = 946_684_800;

/// What a type's send function makes of a value; `None` if the text is not one of the type. Points in time are in UTC.
pub fn encode(column_type: ColumnType, text: &str) -> Option<Vec<u8>> {
    Some(match column_type {
        ColumnType::Bool => vec![u8::from(text == "t")],
        ColumnType::Name | ColumnType::Text => text.as_bytes().to_vec(),
        ColumnType::Void => Vec::new(),
        ColumnType::Int2 => text.parse::<i16>().ok()?.to_be_bytes().to_vec(),
        ColumnType::Int4 => text.parse::<i32>().ok()?.to_be_bytes().to_vec(),
        ColumnType::Int8 => text.parse::<i64>().ok()?.to_be_bytes().to_vec(),
        ColumnType::Oid | ColumnType::Xid => text.parse::<u32>().ok()?.to_be_bytes().to_vec(),
        ColumnType::PgLsn => text.parse::<Lsn>().ok()?.as_u64().to_be_bytes().to_vec(),
        ColumnType::Inet => inet(text)?,
        ColumnType::Timestamptz => timestamptz(text)?.to_be_bytes().to_vec(),
        ColumnType::Interval => interval(text)?,
        ColumnType::Float8 => text.parse::<f64>().ok()?.to_be_bytes().to_vec(),
        ColumnType::Numeric => numeric(text)?,
        ColumnType::TextArray => text_array(text)?,
    })
}

/// PG: `interval_send`: microseconds, days, months.
fn interval(text: &str) -> Option<Vec<u8>> {
    let (mut micros, mut days, mut months) = (0, 0_i32, 0_i32);
    let mut words = text.split(' ');
    while let Some(word) = words.next() {
        if word.contains(':') {
            micros = match word.strip_prefix('-') {
                Some(word) => -time(word)?,
                None => time(word.strip_prefix('+').unwrap_or(word))?,
            };
            continue;
        }
        let number: i32 = word.parse().ok()?;
        match words.next()?.trim_end_matches('s') {
            "day" => days = number,
            "mon" => months = months.checked_add(number)?,
            "year" => months = months.checked_add(number.checked_mul(12)?)?,
            _ => return None,
        }
    }
    Some([&micros.to_be_bytes()[..], &days.to_be_bytes(), &months.to_be_bytes()].concat())
}

/// PG: `numeric_send`: digits to the base of 10000, and where the point is among them.
fn numeric(text: &str) -> Option<Vec<u8>> {
    let (is_negative, number) = text.strip_prefix('-').map_or((false, text), |number| (true, number));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = format!("{whole:0>width$}", width = whole.len().next_multiple_of(4));
    let all = format!("{whole}{fraction:0<width$}", width = fraction.len().next_multiple_of(4));
    let groups: Option<Vec<i16>> =
        (0..all.len() / 4).map(|at| all.get(4 * at..4 * at + 4)?.parse().ok()).collect();
    let groups = groups?;
    let first = groups.iter().position(|group| *group != 0).unwrap_or(groups.len());
    let end = groups.iter().rposition(|group| *group != 0).map_or(first, |last| last + 1);
    let digits = &groups[first..end];
    let weight = if digits.is_empty() {
        0
    } else {
        (whole.len() / 4)
            .checked_sub(first + 1)
            .map_or_else(|| i16::try_from(first + 1 - whole.len() / 4).map(|below| -below), i16::try_from)
            .ok()?
    };
    let sign: i16 = if is_negative { 0x4000 } else { 0 };
    let (count, scale) = (i16::try_from(digits.len()).ok()?, i16::try_from(fraction.len()).ok()?);
    let head = [count, weight, sign, scale];
    Some(head.iter().chain(digits).flat_map(|part| part.to_be_bytes()).collect())
}

/// PG: `array_send`, of an array of one dimension whose values need no quotes.
fn text_array(text: &str) -> Option<Vec<u8>> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let values: Vec<&str> = if inner.is_empty() { Vec::new() } else { inner.split(',').collect() };
    let dimensions = i32::from(!values.is_empty());
    let mut bytes: Vec<u8> = [dimensions, 0, 25].iter().flat_map(|part: &i32| part.to_be_bytes()).collect();
    if dimensions > 0 {
        bytes.extend(i32::try_from(values.len()).ok()?.to_be_bytes());
        bytes.extend(1_i32.to_be_bytes());
    }
    for value in values {
        bytes.extend(i32::try_from(value.len()).ok()?.to_be_bytes());
        bytes.extend(value.as_bytes());
    }
    Some(bytes)
}

/// PG: `network_send`: family, bits, whether it is a cidr, length, address.
fn inet(text: &str) -> Option<Vec<u8>> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let bits: Option<u8> = bits.map(|bits| bits.parse().ok()).unwrap_or_default();
    Some(match address.parse().ok()? {
        IpAddr::V4(address) => [&[2, bits.unwrap_or(32), 0, 4][..], &address.octets()].concat(),
        IpAddr::V6(address) => [&[3, bits.unwrap_or(128), 0, 16][..], &address.octets()].concat(),
    })
}

/// Microseconds since 2000 of `YYYY-MM-DD hh:mm:ss[.ffffff]+00`.
fn timestamptz(text: &str) -> Option<i64> {
    let (date, rest) = text.strip_suffix("+00")?.split_once(' ')?;
    let mut parts = date.splitn(3, '-').map(str::parse::<i64>);
    let [year, month, day] = [parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?];
    // Years that begin in March, so that a leap day is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let days = year.checked_mul(365)? + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468;
    days.checked_mul(86_400)?.checked_sub(EPOCH)?.checked_mul(1_000_000)?.checked_add(time(rest)?)
}

/// Microseconds of `hh:mm:ss[.ffffff]`.
fn time(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = whole.splitn(3, ':').map(str::parse::<i64>);
    let [hours, minutes, seconds] = [parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?];
    let micros = format!("{fraction:0<6}").parse::<i64>().ok().filter(|_| fraction.len() <= 6)?;
    let seconds = hours.checked_mul(3600)?.checked_add(minutes * 60)?.checked_add(seconds)?;
    seconds.checked_mul(1_000_000)?.checked_add(micros)
}

/// The text of a value in binary format, of the type with this number; `None` if it is none of that type, or the type
/// is not known here.
pub fn decode(type_oid: u32, bytes: &[u8]) -> Option<String> {
    let lsn = |bytes: [u8; 8]| Lsn::new(u64::from_be_bytes(bytes)).to_string();
    Some(match type_oid {
        16 => match bytes {
            [0] => "f".to_owned(),
            [_] => "t".to_owned(),
            _ => return None,
        },
        20 => i64::from_be_bytes(bytes.try_into().ok()?).to_string(),
        21 => i16::from_be_bytes(bytes.try_into().ok()?).to_string(),
        23 => i32::from_be_bytes(bytes.try_into().ok()?).to_string(),
        26 | 28 => u32::from_be_bytes(bytes.try_into().ok()?).to_string(),
        700 => f32::from_be_bytes(bytes.try_into().ok()?).to_string(),
        701 => f64::from_be_bytes(bytes.try_into().ok()?).to_string(),
        869 => inet_text(bytes)?,
        1184 => timestamptz_text(i64::from_be_bytes(bytes.try_into().ok()?))?,
        1186 => interval_text(bytes)?,
        1700 => numeric_text(bytes)?,
        3220 => lsn(bytes.try_into().ok()?),
        // name, text, unknown, bpchar, varchar
        19 | 25 | 705 | 1042 | 1043 => std::str::from_utf8(bytes).ok()?.to_owned(),
        _ => return None,
    })
}

fn inet_text(bytes: &[u8]) -> Option<String> {
    let (head, address) = bytes.split_at_checked(4)?;
    let address = match (head, address.len()) {
        ([2, _, _, 4], 4) => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        ([3, _, _, 16], 16) => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        _ => return None,
    };
    Some(format!("{address}/{}", head[1]))
}

/// `YYYY-MM-DD hh:mm:ss.ffffff+00`, from 1 AD to 9999.
fn timestamptz_text(since_2000: i64) -> Option<String> {
    let micros = since_2000.checked_add(EPOCH * 1_000_000)?;
    let (days, of_day) = (micros.div_euclid(86_400_000_000), micros.rem_euclid(86_400_000_000));
    let (year, month, day) = date(days)?;
    let (seconds, micros) = (of_day / 1_000_000, of_day % 1_000_000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    Some(format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02}.{micros:06}+00"))
}

/// The date so many days after 1970-01-01, in years that begin in March.
fn date(days: i64) -> Option<(i64, i64, i64)> {
    let days = days.checked_add(719_468)?;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    (1..=9999).contains(&year).then_some((year, month, day))
}

fn interval_text(bytes: &[u8]) -> Option<String> {
    let (micros, rest) = bytes.split_at_checked(8)?;
    let (days, months) = rest.split_at_checked(4)?;
    let micros = i64::from_be_bytes(micros.try_into().ok()?);
    let days = i32::from_be_bytes(days.try_into().ok()?);
    let months = i32::from_be_bytes(months.try_into().ok()?);
    Some(format!("{months} mons {days} days {micros} microseconds"))
}

fn numeric_text(bytes: &[u8]) -> Option<String> {
    let parts: Vec<i16> =
        bytes.chunks(2).map(|two| Some(i16::from_be_bytes(two.try_into().ok()?))).collect::<Option<_>>()?;
    let [count, weight, sign, scale, digits @ ..] = parts.as_slice() else { return None };
    let is_one = usize::try_from(*count).ok() == Some(digits.len())
        && digits.iter().all(|it| (0..10_000).contains(it));
    // More than are ever calculated with; and NaN has another sign.
    if !is_one || digits.len() > 100 || !(-100..=100).contains(weight) || !(0..=400).contains(scale) {
        return None;
    }
    let sign = match sign {
        0 => "",
        0x4000 => "-",
        _ => return None,
    };
    let group = |place: i16| {
        let at = usize::try_from(weight - place).ok();
        at.and_then(|at| digits.get(at)).copied().unwrap_or(0)
    };
    let whole: String = (0..=(*weight).max(0)).rev().map(|place| format!("{:04}", group(place))).collect();
    let groups = (scale + 3) / 4;
    let fraction: String = (1..=groups).map(|place| format!("{:04}", group(-place))).collect();
    let fraction = &fraction[..usize::try_from(*scale).ok()?];
    let point = if fraction.is_empty() { "" } else { "." };
    Some(format!("{sign}{whole}{point}{fraction}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values as a server of version 17 sends them.
    #[test]
    fn values_are_those_of_the_servers() {
        let check = |column_type, text, expected: &[u8]| {
            assert_eq!(encode(column_type, text).as_deref(), Some(expected), "{text}");
        };
        check(ColumnType::Bool, "t", &[1]);
        check(ColumnType::Int2, "-2", &[0xff, 0xfe]);
        check(ColumnType::Int4, "-2", &[0xff, 0xff, 0xff, 0xfe]);
        check(ColumnType::Int8, "258", &[0, 0, 0, 0, 0, 0, 1, 2]);
        check(ColumnType::Xid, "4294967295", &[0xff; 4]);
        check(ColumnType::Text, "é", "é".as_bytes());
        check(ColumnType::PgLsn, "1/A000028", &[0, 0, 0, 1, 0x0a, 0, 0, 0x28]);
        check(ColumnType::Inet, "10.0.0.1", &[2, 32, 0, 4, 10, 0, 0, 1]);
        check(ColumnType::Inet, "::1", &[&[3, 128, 0, 16][..], &[0; 15], &[1]].concat());
        check(ColumnType::Timestamptz, "2000-01-01 00:00:00+00", &[0; 8]);
        check(ColumnType::Timestamptz, "1999-12-31 23:59:59.5+00", &(-500_000_i64).to_be_bytes());
        // extract(epoch from timestamptz '2024-02-29 12:34:56.789+00') = 1709210096.789
        let leap = (1_709_210_096_789_000_i64 - EPOCH * 1_000_000).to_be_bytes();
        check(ColumnType::Timestamptz, "2024-02-29 12:34:56.789+00", &leap);
        let interval = [&90_000_000_001_i64.to_be_bytes()[..], &[0; 8]].concat();
        check(ColumnType::Interval, "25:00:00.000001", &interval);
        assert_eq!(encode(ColumnType::Int4, "x"), None);
    }

    #[test]
    fn parameters_are_read_as_they_were_meant() {
        for (oid, column_type, text) in [
            (16, ColumnType::Bool, "f"),
            (20, ColumnType::Int8, "-9"),
            (21, ColumnType::Int2, "-32768"),
            (23, ColumnType::Int4, "4194305"),
            (26, ColumnType::Oid, "4000000000"),
            (19, ColumnType::Name, "slot"),
            (3220, ColumnType::PgLsn, "1/A000028"),
        ] {
            let bytes = encode(column_type, text).unwrap();
            assert_eq!(decode(oid, &bytes).as_deref(), Some(text));
        }
        for (oid, bytes) in [(16, &b"\0\0"[..]), (23, b"123"), (25, b"\xff"), (1184, b"1234567"), (0, b"")] {
            assert_eq!(decode(oid, bytes), None, "{oid}");
        }
    }

    #[test]
    fn what_is_sent_in_binary_comes_back() {
        for (oid, column_type, text, read) in [
            (701, ColumnType::Float8, "1.5", "1.5"),
            (869, ColumnType::Inet, "10.0.0.0/8", "10.0.0.0/8"),
            (869, ColumnType::Inet, "::1", "::1/128"),
            (1184, ColumnType::Timestamptz, "2024-02-29 12:34:56.789+00", "2024-02-29 12:34:56.789000+00"),
            (
                1186,
                ColumnType::Interval,
                "1 year 2 mons -3 days +00:00:01",
                "14 mons -3 days 1000000 microseconds",
            ),
            (1186, ColumnType::Interval, "-00:00:01", "0 mons 0 days -1000000 microseconds"),
            (1700, ColumnType::Numeric, "0", "0000"),
            (1700, ColumnType::Numeric, "-12345.067", "-00012345.067"),
            (1700, ColumnType::Numeric, "0.00012", "0000.00012"),
            (1700, ColumnType::Numeric, "0.00000001", "0000.00000001"),
            (1700, ColumnType::Numeric, "120000000", "000120000000"),
        ] {
            let bytes = encode(column_type, text).unwrap();
            assert_eq!(decode(oid, &bytes).as_deref(), Some(read), "{text}");
        }
        // numeric_send(123.45), array_send('{a,b}') of version 17.
        assert_eq!(
            encode(ColumnType::Numeric, "123.45").unwrap(),
            [0, 2, 0, 0, 0, 0, 0, 2, 0, 123, 0x11, 0x94]
        );
        let array =
            [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 25, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, b'a', 0, 0, 0, 1, b'b'];
        assert_eq!(encode(ColumnType::TextArray, "{a,b}").unwrap(), array);
        for bytes in [&b"\0\x02\0\0\0\0\0\0\0\x01"[..], b"\0", b"", &[0x7f; 9]] {
            assert_eq!((decode(1700, bytes), decode(869, bytes)), (None, None));
        }
    }
}
