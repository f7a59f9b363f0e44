//! Misspelt words.

/// The known word that was probably meant.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = if word.chars().nth(3).is_some() { 2 } else { 1 };
    let distances = known.into_iter().map(|name| (distance(word, name), name));
    distances.filter(|(distance, _)| *distance <= limit).min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// Letters to change, add or take away to come from one word to the other, whatever their case.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    // Words that are much too long to be a misspelling are not worth the table.
    for (line, c) in from.to_lowercase().chars().take(64).enumerate() {
        let mut diagonal = line;
        let mut left = line + 1;
        let mut next = vec![left];
        for (above, d) in row.iter().skip(1).zip(&to) {
            left = (diagonal + usize::from(c != *d)).min(above + 1).min(left + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default() + from.chars().count().saturating_sub(64)
}
