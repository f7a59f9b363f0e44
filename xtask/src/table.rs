//! Plain-text tables.

/// Rows as aligned columns: the first column to the left, the others to the right.
pub(crate) fn columns(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(header.get(column).map(|title| title.len())).max().unwrap_or(0)
    };
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (column, cell) in cells.enumerate() {
            let padding = " ".repeat(width(column).saturating_sub(cell.chars().count()));
            let (before, after) = if column == 0 { ("", padding.as_str()) } else { (padding.as_str(), "") };
            text.push_str(before);
            text.push_str(cell);
            text.push_str(after);
            text.push_str("  ");
        }
        text.trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut header.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::columns;

    #[test]
    fn aligns_names_left_and_figures_right() {
        let rows = [vec!["nginx".to_owned(), "1200".to_owned()], vec!["a".to_owned(), "7".to_owned()]];
        assert_eq!(columns(&["service", "n"], &rows), "service     n\nnginx    1200\na           7\n");
    }
}
