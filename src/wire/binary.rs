//! Values in binary format, from and to texts as PostgreSQL's output functions write them.

use std::net::IpAddr;

use walrelay_proto::Lsn;

use super::messages::ColumnType;

/// Seconds from 1970 to 2000, where PostgreSQL counts from.
const EPOCH: i64 = 946_684_800;

/// What a type's send function makes of a value; `None` if the text is not one of the type. Points in time are in UTC,
/// intervals in hours and less.
pub fn encode(column_type: ColumnType, text: &str) -> Option<Vec<u8>> {
    Some(match column_type {
        ColumnType::Bool => vec![u8::from(text == "t")],
        ColumnType::Name | ColumnType::Text => text.as_bytes().to_vec(),
        ColumnType::Void => Vec::new(),
        ColumnType::Int4 => text.parse::<i32>().ok()?.to_be_bytes().to_vec(),
        ColumnType::Int8 => text.parse::<i64>().ok()?.to_be_bytes().to_vec(),
        ColumnType::Oid | ColumnType::Xid => text.parse::<u32>().ok()?.to_be_bytes().to_vec(),
        ColumnType::PgLsn => text.parse::<Lsn>().ok()?.as_u64().to_be_bytes().to_vec(),
        ColumnType::Inet => inet(text.parse().ok()?),
        ColumnType::Timestamptz => timestamptz(text)?.to_be_bytes().to_vec(),
        ColumnType::Interval => [&time(text)?.to_be_bytes()[..], &[0; 8]].concat(),
    })
}

/// PG: `network_send`: family, bits, whether it is a cidr, length, address.
fn inet(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => [&[2, 32, 0, 4][..], &address.octets()].concat(),
        IpAddr::V6(address) => [&[3, 128, 0, 16][..], &address.octets()].concat(),
    }
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
        3220 => lsn(bytes.try_into().ok()?),
        // name, text, unknown, bpchar, varchar
        19 | 25 | 705 | 1042 | 1043 => std::str::from_utf8(bytes).ok()?.to_owned(),
        _ => return None,
    })
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
            (23, ColumnType::Int4, "4194305"),
            (26, ColumnType::Oid, "4000000000"),
            (19, ColumnType::Name, "slot"),
            (3220, ColumnType::PgLsn, "1/A000028"),
        ] {
            let bytes = encode(column_type, text).unwrap();
            assert_eq!(decode(oid, &bytes).as_deref(), Some(text));
        }
        for (oid, bytes) in [(16, &b"\0\0"[..]), (23, b"123"), (25, b"\xff"), (1184, b"12345678"), (0, b"")] {
            assert_eq!(decode(oid, bytes), None, "{oid}");
        }
    }
}
