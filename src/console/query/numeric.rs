//! `numeric`: exact decimal numbers (PostgreSQL: `numeric.c`), of 38 digits at most where the server has thousands.

use std::cmp::Ordering;
use std::fmt;

/// Digits behind the point that there may be.
const MOST_SCALE: u32 = 37;

/// `digits` / 10^`scale`
#[derive(Clone, Copy, Debug)]
pub(super) struct Numeric {
    digits: i128,
    scale: u32,
}

impl Numeric {
    pub(super) fn new(digits: i128, scale: u32) -> Numeric {
        Numeric { digits, scale }
    }

    /// `[+-]digits[.digits][e[+-]digits]`, white space around it.
    pub(super) fn parse(text: &str) -> Option<Numeric> {
        let text = text.trim_ascii();
        let (number, power) = match text.split_once(['e', 'E']) {
            Some((number, power)) => (number, power.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (is_negative, number) = match number.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, number.strip_prefix('+').unwrap_or(number)),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let all = [whole, fraction].concat();
        if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let significant = all.trim_start_matches('0');
        let mut digits: i128 = if significant.is_empty() { 0 } else { significant.parse().ok()? };
        let scale = i32::try_from(fraction.len()).ok()?.checked_sub(power)?;
        if scale < 0 && digits != 0 {
            digits = digits.checked_mul(ten(scale.unsigned_abs())?)?;
        }
        let scale = u32::try_from(scale.max(0)).ok().filter(|scale| *scale <= MOST_SCALE)?;
        Some(Numeric { digits: if is_negative { -digits } else { digits }, scale })
    }

    /// PG: `float8_numeric`: 15 digits count.
    pub(super) fn from_f64(value: f64) -> Option<Numeric> {
        if !value.is_finite() {
            return None;
        }
        Numeric::parse(&format!("{value:.14e}")).map(Numeric::without_zeros)
    }

    pub(super) fn to_f64(self) -> f64 {
        // Through the text, so that it is the nearest one.
        self.to_string().parse().unwrap_or(f64::NAN)
    }

    /// Rounded half away from zero.
    pub(super) fn to_i64(self) -> Option<i64> {
        i64::try_from(self.round(0)?.digits).ok()
    }

    pub(super) fn is_zero(self) -> bool {
        self.digits == 0
    }

    /// Digits, without a point.
    pub(super) fn digits(self) -> i128 {
        self.digits
    }

    fn without_zeros(mut self) -> Numeric {
        while self.scale > 0 && self.digits % 10 == 0 {
            self.digits /= 10;
            self.scale -= 1;
        }
        self
    }

    /// Without a change of the value.
    fn at_scale(self, scale: u32) -> Option<i128> {
        self.digits.checked_mul(ten(scale.checked_sub(self.scale)?)?)
    }

    fn aligned(self, other: Numeric) -> Option<(i128, i128, u32)> {
        let scale = self.scale.max(other.scale);
        Some((self.at_scale(scale)?, other.at_scale(scale)?, scale))
    }

    pub(super) fn add(self, other: Numeric) -> Option<Numeric> {
        let (a, b, scale) = self.aligned(other)?;
        Some(Numeric { digits: a.checked_add(b)?, scale })
    }

    pub(super) fn neg(self) -> Option<Numeric> {
        Some(Numeric { digits: self.digits.checked_neg()?, ..self })
    }

    pub(super) fn abs(self) -> Option<Numeric> {
        Some(Numeric { digits: self.digits.checked_abs()?, ..self })
    }

    pub(super) fn sub(self, other: Numeric) -> Option<Numeric> {
        let (a, b, scale) = self.aligned(other)?;
        Some(Numeric { digits: a.checked_sub(b)?, scale })
    }

    pub(super) fn mul(self, other: Numeric) -> Option<Numeric> {
        let product =
            Numeric { digits: self.digits.checked_mul(other.digits)?, scale: self.scale + other.scale };
        product.round(product.scale.min(MOST_SCALE).cast_signed())
    }

    /// The first digits in groups of four, and their place (PG: `NumericVar.weight`, `digits[0]`).
    fn first_group(self) -> (i32, i128) {
        let mut value = self.digits.unsigned_abs().cast_signed();
        if value == 0 {
            return (0, 0);
        }
        // The point is to be between groups.
        let scale = self.scale.next_multiple_of(4);
        value = value.saturating_mul(ten(scale - self.scale).unwrap_or(1));
        let mut weight = -(scale / 4).cast_signed();
        while value >= 10_000 {
            value /= 10_000;
            weight += 1;
        }
        (weight, value)
    }

    /// With as many digits as PostgreSQL has (PG: `select_div_scale`). Not by zero.
    pub(super) fn div(self, other: Numeric) -> Option<Numeric> {
        let ((weight, first), (other_weight, other_first)) = (self.first_group(), other.first_group());
        let mut quotient = weight - other_weight;
        if first <= other_first {
            quotient -= 1;
        }
        let scale = (16 - quotient * 4).max(self.scale.cast_signed()).max(other.scale.cast_signed()).max(0);
        let scale = scale.cast_unsigned().min(MOST_SCALE);
        let power = i64::from(scale) - i64::from(self.scale) + i64::from(other.scale);
        let shift = ten(u32::try_from(power.abs()).ok()?)?;
        let (dividend, divisor) = match power < 0 {
            true => (self.digits, other.digits.checked_mul(shift)?),
            false => (self.digits.checked_mul(shift)?, other.digits),
        };
        Some(Numeric { digits: divided(dividend, divisor), scale })
    }

    /// The sign is that of the dividend. Not by zero.
    pub(super) fn rem(self, other: Numeric) -> Option<Numeric> {
        let (a, b, scale) = self.aligned(other)?;
        Some(Numeric { digits: a.checked_rem(b)?, scale })
    }

    /// To so many digits behind the point, or before it; half away from zero.
    pub(super) fn round(self, scale: i32) -> Option<Numeric> {
        self.cut(scale, divided)
    }

    pub(super) fn trunc(self, scale: i32) -> Option<Numeric> {
        self.cut(scale, |value, by| value / by)
    }

    pub(super) fn floor(self) -> Option<Numeric> {
        self.cut(0, i128::div_euclid)
    }

    pub(super) fn ceil(self) -> Option<Numeric> {
        self.cut(0, |value, by| value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0))
    }

    fn cut(self, scale: i32, divide: impl Fn(i128, i128) -> i128) -> Option<Numeric> {
        let wanted = scale.max(0).cast_unsigned().min(MOST_SCALE);
        if scale >= self.scale.cast_signed() {
            return Some(Numeric { digits: self.at_scale(wanted)?, scale: wanted });
        }
        let by = u32::try_from(i64::from(self.scale) - i64::from(scale)).ok()?;
        let Some(by) = ten(by) else { return Some(Numeric { digits: 0, scale: wanted }) };
        let digits = divide(self.digits, by);
        if scale >= 0 {
            return Some(Numeric { digits, scale: wanted });
        }
        Some(Numeric { digits: digits.checked_mul(ten(scale.unsigned_abs())?)?, scale: 0 })
    }
}

/// Rounded half away from zero.
fn divided(value: i128, by: i128) -> i128 {
    let (quotient, rest) = (value.wrapping_div(by), value.wrapping_rem(by));
    let away = if (value < 0) == (by < 0) { 1 } else { -1 };
    let half = rest.unsigned_abs() >= by.unsigned_abs() - by.unsigned_abs() / 2;
    if rest != 0 && half { quotient.saturating_add(away) } else { quotient }
}

fn ten(power: u32) -> Option<i128> {
    10_i128.checked_pow(power)
}

impl From<i64> for Numeric {
    fn from(value: i64) -> Numeric {
        Numeric { digits: value.into(), scale: 0 }
    }
}

impl fmt::Display for Numeric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.digits < 0 { "-" } else { "" };
        let digits = self.digits.unsigned_abs().to_string();
        let scale = self.scale as usize;
        if scale == 0 {
            return write!(f, "{sign}{digits}");
        }
        let digits = format!("{digits:0>width$}", width = scale + 1);
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        write!(f, "{sign}{whole}.{fraction}")
    }
}

impl Ord for Numeric {
    fn cmp(&self, other: &Numeric) -> Ordering {
        if let Some((a, b, _)) = self.aligned(*other) {
            return a.cmp(&b);
        }
        // One of them is too large to be written like the other: the whole parts differ, or what is behind the point does.
        let parts = |it: &Numeric| {
            let by = ten(it.scale).unwrap_or(i128::MAX);
            (it.digits.div_euclid(by), it.digits.rem_euclid(by) * ten(MOST_SCALE - it.scale).unwrap_or(1))
        };
        parts(self).cmp(&parts(other))
    }
}

impl PartialOrd for Numeric {
    fn partial_cmp(&self, other: &Numeric) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Numeric {
    fn eq(&self, other: &Numeric) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Numeric {}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Numeric {
        Numeric::parse(text).unwrap()
    }

    /// As a server of version 17 has them.
    #[test]
    fn numbers_are_calculated_as_postgresql_does() {
        let check = |value: Option<Numeric>, expected: &str| assert_eq!(value.unwrap().to_string(), expected);
        check(number("1").div(number("3")), "0.33333333333333333333");
        check(number("10").div(number("4")), "2.5000000000000000");
        check(number("2").div(number("3")), "0.66666666666666666667");
        check(number("1709210096.789000").div(number("60")), "28486834.946483333333");
        check(number("1.5").mul(number("-0.25")), "-0.375");
        check(number("0.1").add(number("0.22")), "0.32");
        check(number("-7.5").rem(number("2")), "-1.5");
        check(number("2.5").round(0), "3");
        check(number("-2.5").round(0), "-3");
        check(number("1234.567").round(-2), "1200");
        check(number("-1.5").floor(), "-2");
        check(number("-1.5").ceil(), "-1");
        check(number("1.999").trunc(1), "1.9");
        check(Numeric::from_f64(0.1 + 0.2), "0.3");
        check(Numeric::from_f64(1e15), "1000000000000000");
        check(Numeric::parse("1.5e3"), "1500");
        check(Numeric::parse("-1e-3"), "-0.001");
        assert_eq!(number("1.50"), number("1.5"));
        assert!(
            number("99999999999999999999999999999999999999")
                > number("0.0000000000000000000000000000000000001")
        );
        assert!(
            number("-99999999999999999999999999999999999999")
                < number("-0.0000000000000000000000000000000000001")
        );
        for text in ["", "-", ".", "1.", "e5", "1e", "x", "1 2", "1e99999999999", "1e400", "NaN"] {
            let is_fine = text == "1.";
            assert_eq!(Numeric::parse(text).is_some(), is_fine, "{text}");
        }
        assert!(number("99999999999999999999999999999999999999").mul(number("99")).is_none());
        // The least one has no counterpart.
        let least = Numeric::new(i128::MIN, 0);
        check(least.sub(least), "0");
        check(least.ceil(), &i128::MIN.to_string());
        assert!(least.neg().is_none() && least.abs().is_none() && number("0").sub(least).is_none());
    }
}
