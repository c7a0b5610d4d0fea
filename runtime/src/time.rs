//! The time of day, as records and logs have it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::ClockId;

/// Now, in UTC, as RFC 3339 writes it, to the millisecond: `2026-11-21T06:04:10.123Z`.
pub fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format(since.as_secs(), since.subsec_millis())
}

/// The same to the nanosecond, as the log format of Kubernetes' CRI has it.
pub fn now_to_the_nanosecond() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let to_the_second = format(since.as_secs(), 0);
    format!("{}.{:09}Z", &to_the_second[..19], since.subsec_nanos())
}

/// How long ago the machine was started, by the clock of [`std::time::Instant`]; for whoever goes on in another process.
pub fn since_start() -> Duration {
    ClockId::CLOCK_MONOTONIC.now().map_or(Duration::ZERO, Duration::from)
}

fn format(seconds: u64, millis: u32) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from March, so that the leap day is a year's last; an era is 400 years.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::format;

    #[test]
    fn days_of_leap_years_are_counted() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000Z"),
            (1_795_241_050, "2026-11-21T06:04:10.000Z"),
        ] {
            assert_eq!(format(seconds, 0), text);
        }
    }
}
