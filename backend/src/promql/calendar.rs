//! Functions of PromQL that say what day it is, in UTC.

/// What a function says of a time, seconds since the epoch; none if it is no such function.
pub(super) fn part_of_time(name: &str) -> Option<fn(f64) -> f64> {
    Some(match name {
        "minute" => |time| (seconds(time).div_euclid(60).rem_euclid(60)) as f64,
        "hour" => |time| (seconds(time).div_euclid(3_600).rem_euclid(24)) as f64,
        // The epoch was a Thursday.
        "day_of_week" => |time| (days(time) + 4).rem_euclid(7) as f64,
        "day_of_month" => |time| date(days(time)).2 as f64,
        "day_of_year" => |time| {
            let (year, ..) = date(days(time));
            (days(time) - days_until(year, 1) + 1) as f64
        },
        "days_in_month" => |time| {
            let (year, month, _) = date(days(time));
            let (next_year, next) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
            (days_until(next_year, next) - days_until(year, month)) as f64
        },
        "month" => |time| date(days(time)).1 as f64,
        "year" => |time| date(days(time)).0 as f64,
        _ => return None,
    })
}

fn seconds(time: f64) -> i64 {
    // A hundred thousand years on both sides of the epoch, so that nothing below overflows.
    time.clamp(-3e12, 3e12) as i64
}

fn days(time: f64) -> i64 {
    seconds(time).div_euclid(86_400)
}

/// Days from the epoch to the first of a month, in the Gregorian calendar.
const fn days_until(year: i64, month: i64) -> i64 {
    // Years that begin in March have the leap day at their end.
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let day_of_year = (153 * month + 2) / 5;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468
}

/// Year, month and day of a day since the epoch.
const fn date(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + if month <= 2 { 1 } else { 0 }, month, day_of_month)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "whole numbers are exact")]

    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::epoch(0.0, [1970.0, 1.0, 1.0, 4.0, 1.0, 31.0, 0.0, 0.0])]
    #[case::leap_day(1_709_209_845.0, [2024.0, 2.0, 29.0, 4.0, 60.0, 29.0, 12.0, 30.0])]
    #[case::last_day(1_798_761_599.0, [2026.0, 12.0, 31.0, 4.0, 365.0, 31.0, 23.0, 59.0])]
    #[case::before(-1.0, [1969.0, 12.0, 31.0, 3.0, 365.0, 31.0, 23.0, 59.0])]
    fn what_day_it_is(#[case] time: f64, #[case] expected: [f64; 8]) {
        let names = ["year", "month", "day_of_month", "day_of_week", "day_of_year", "days_in_month", "hour", "minute"];
        assert_eq!(names.map(|name| part_of_time(name).unwrap()(time)), expected);
    }

    #[test]
    fn every_day_is_the_one_after_the_day_before() {
        for year in -2_000..4_000 {
            for month in 1..=12 {
                assert_eq!(date(days_until(year, month)), (year, month, 1));
            }
        }
    }
}
