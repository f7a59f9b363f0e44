//! Quantiles of many numbers in little memory: a `DDSketch` (Masson, Rim and Lee, 2019).

/// Largest relative error of a quantile. Half of what is promised, so that rounding never breaks the promise.
const ACCURACY: f64 = 0.005;

/// Numbers nearer to zero than this count as zero.
const SMALLEST: f64 = 1e-12;

/// Counts numbers by their logarithm, so that every number of a bucket is within [`ACCURACY`] of its middle. Two sketches
/// merge into the sketch of all their numbers, in any order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sketch {
    positive: Buckets,
    negative: Buckets,
    zero: u64,
    count: u64,
    min: f64,
    max: f64,
}

/// Buckets of a page.
const PAGE: i32 = 32;

/// How many numbers are in each bucket of a page.
type Page = [u64; PAGE as usize];

/// How many numbers are in which bucket. Buckets that are used lie near to each other, so pages of them are found without
/// a search and little of them is empty.
#[derive(Clone, Debug, Default, PartialEq)]
struct Buckets {
    /// Number of the first page.
    first: i32,
    /// From the first to the last one that has something.
    pages: Vec<Option<Box<Page>>>,
}

impl Buckets {
    /// Counts a number. Returns the bytes of memory which that took.
    fn add(&mut self, bucket: i32) -> usize {
        let (number, within) = (bucket.div_euclid(PAGE), bucket.rem_euclid(PAGE));
        let (is_new, pages_before) = (self.page(number).is_none(), self.pages.len());
        let page = self.page_or_new(number);
        if let Some(count) = page.and_then(|page| page.get_mut(within as usize)) {
            *count += 1;
        }
        let pages = (self.pages.len() - pages_before) * size_of::<Option<Box<Page>>>();
        pages + if is_new { size_of::<Page>() } else { 0 }
    }

    /// Adds all of the others.
    fn merge(&mut self, others: &Self) {
        for (number, theirs) in (others.first..).zip(&others.pages) {
            let Some(theirs) = theirs else { continue };
            if let Some(ours) = self.page_or_new(number) {
                ours.iter_mut().zip(theirs.iter()).for_each(|(ours, theirs)| *ours += theirs);
            }
        }
    }

    fn place(&self, number: i32) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }

    fn page(&self, number: i32) -> Option<&Page> {
        self.pages.get(self.place(number)?)?.as_deref()
    }

    fn page_or_new(&mut self, number: i32) -> Option<&mut Page> {
        if self.pages.is_empty() {
            self.first = number;
        }
        let before = usize::try_from(self.first.checked_sub(number)?).unwrap_or(0);
        if before > 0 {
            self.pages.splice(..0, std::iter::repeat_n(None, before));
            self.first = number;
        }
        let place = self.place(number)?;
        if place >= self.pages.len() {
            self.pages.resize(place + 1, None);
        }
        Some(self.pages.get_mut(place)?.get_or_insert_with(|| Box::new([0; PAGE as usize])))
    }

    /// Ascending; some may be empty.
    fn iter(&self) -> impl DoubleEndedIterator<Item = (i32, u64)> {
        self.pages.iter().enumerate().flat_map(move |(place, page)| {
            let first = (self.first + place as i32) * PAGE;
            page.iter()
                .flat_map(move |page| page.iter().enumerate().map(move |(at, count)| (first + at as i32, *count)))
        })
    }
}

impl Sketch {
    /// Counts a number; what is none is ignored. Returns the bytes of memory which that took.
    pub(super) fn add(&mut self, number: f64) -> usize {
        if !number.is_finite() {
            return 0;
        }
        (self.min, self.max) =
            if self.count == 0 { (number, number) } else { (self.min.min(number), self.max.max(number)) };
        self.count += 1;
        let buckets = if number > SMALLEST {
            &mut self.positive
        } else if number < -SMALLEST {
            &mut self.negative
        } else {
            self.zero += 1;
            return 0;
        };
        buckets.add(bucket(number.abs()))
    }

    /// Adds all numbers of another sketch.
    pub(super) fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        (self.min, self.max) =
            if self.count == 0 { (other.min, other.max) } else { (self.min.min(other.min), self.max.max(other.max)) };
        self.count += other.count;
        self.zero += other.zero;
        for (ours, theirs) in [(&mut self.positive, &other.positive), (&mut self.negative, &other.negative)] {
            ours.merge(theirs);
        }
    }

    /// The number below which a part of all numbers, 0 to 1, lies; none if there are no numbers. Of `n` numbers, that is
    /// the `ceil(part * n)`th.
    pub(super) fn quantile(&self, part: f64) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        // A float holds counts up to 2^53 exactly.
        let rank = ((part * self.count as f64).ceil() as u64).clamp(1, self.count);
        if rank == self.count {
            return Some(self.max);
        }
        let negative = self.negative.iter().rev().map(|(bucket, count)| (-middle(bucket), count));
        let positive = self.positive.iter().map(|(bucket, count)| (middle(bucket), count));
        let mut seen = 0;
        let found = negative.chain([(0.0, self.zero)]).chain(positive).find(|(_, count)| {
            seen += count;
            seen >= rank
        });
        found.map(|(number, _)| number.clamp(self.min, self.max))
    }
}

/// Natural logarithm of the quotient of two neighbouring bounds.
///
/// Twice the inverse hyperbolic tangent of [`ACCURACY`].
const WIDTH: f64 = 0.010_000_083_334_583_356;

/// The bucket of a number above [`SMALLEST`].
fn bucket(number: f64) -> i32 {
    let exact = number.ln() / WIDTH;
    let below = exact as i32;
    // Rounded up. To ask for that by name is a call of a function.
    if exact > f64::from(below) { below + 1 } else { below }
}

/// The number that is equally far, relatively, from both bounds of a bucket.
fn middle(bucket: i32) -> f64 {
    (f64::from(bucket) * WIDTH).exp() * (1.0 - ACCURACY)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn sketch(numbers: &[f64]) -> Sketch {
        let mut sketch = Sketch::default();
        for number in numbers {
            sketch.add(*number);
        }
        sketch
    }

    fn exact(numbers: &[f64], part: f64) -> f64 {
        let mut sorted = numbers.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = ((part * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
        sorted[rank - 1]
    }

    #[rstest]
    #[case::half(0.5, 0.2)]
    #[case::most(0.9, 0.5)]
    #[case::least(0.0, 0.1)]
    #[case::all(1.0, 0.5)]
    fn of_durations(#[case] part: f64, #[case] expected: f64) {
        let found = sketch(&[0.1, 0.1, 0.2, 0.3, 0.5]).quantile(part).unwrap();
        assert!((found - expected).abs() <= 0.01 * expected, "{found}");
    }

    #[test]
    fn of_nothing() {
        assert_eq!(sketch(&[]).quantile(0.5), None);
        assert_eq!(sketch(&[f64::NAN, f64::INFINITY]).quantile(0.5), None);
    }

    fn numbers() -> impl Strategy<Value = Vec<f64>> {
        let number = prop_oneof![
            4 => (-9i32..9, 1f64..10.0).prop_map(|(power, number)| number * 10f64.powi(power)),
            1 => Just(0.0),
            1 => -1e6f64..1e6,
        ];
        prop::collection::vec(number, 1..200)
    }

    #[test]
    fn the_width_is_that_of_the_accuracy() {
        assert!((WIDTH - 2.0 * ACCURACY.atanh()).abs() < 1e-17, "{}", 2.0 * ACCURACY.atanh());
    }

    proptest! {
        #[test]
        fn is_within_one_percent(numbers in numbers(), part in 0f64..=1.0) {
            let expected = exact(&numbers, part);
            let found = sketch(&numbers).quantile(part).unwrap();
            prop_assert!((found - expected).abs() <= 0.01 * expected.abs() + 1e-11, "{found} for {expected}");
        }

        #[test]
        fn merging_is_adding(numbers in numbers(), at in 0f64..1.0) {
            let (left, right) = numbers.split_at((numbers.len() as f64 * at) as usize);
            let mut merged = sketch(right);
            merged.merge(&sketch(left));
            prop_assert_eq!(merged, sketch(&numbers));
        }
    }
}
