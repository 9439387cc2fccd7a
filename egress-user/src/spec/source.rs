//! The text that a specification was read from, and where things are in it.

use std::ops::Range;

use miette::{MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents};

/// Bytes of a source text.
pub(super) type Span = Range<usize>;

/// A line longer than this is shown as a window around the problem, not whole (a JSON file is often one line).
const LONG_LINE: usize = 200;
/// Bytes shown on either side of a problem within such a line.
const WINDOW: usize = 70;

/// A named text with an index of its lines.
#[derive(Debug)]
pub struct Source {
    name: String,
    text: String,
    /// Byte offset of the start of each line; never empty.
    lines: Vec<usize>,
}

impl Source {
    /// Takes `text` in, under the `name` that diagnostics show. A leading byte order mark is dropped.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let text = match text.strip_prefix('\u{feff}') {
            Some(rest) => rest.to_owned(),
            None => text,
        };
        let starts = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(starts).collect();
        Self { name: name.into(), text, lines }
    }

    /// Name of the file, as the user wrote it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line and column, both from 1, of a byte offset; the column counts characters.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let offset = self.floor(offset);
        let line = self.line_of(offset);
        let start = self.line_start(line);
        let column = self.text.get(start..offset).unwrap_or_default().chars().count();
        (line + 1, column + 1)
    }

    /// The part of `span` that lies on its first line, without trailing blanks; at least one character where there is
    /// one, so that there is something to underline.
    pub(super) fn first_line(&self, span: &Span) -> Span {
        let start = self.floor(span.start);
        let line_end = self.line_end(self.line_of(start));
        let end = self.floor(span.end).clamp(start, line_end.max(start));
        let shown = self.text.get(start..end).unwrap_or_default().trim_end().len();
        let one = self.text.get(start..line_end).unwrap_or_default().chars().next().map_or(0, char::len_utf8);
        start..start + shown.max(one)
    }

    /// Line, from 0, that holds a byte offset.
    fn line_of(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset).saturating_sub(1)
    }

    fn line_start(&self, line: usize) -> usize {
        self.lines.get(line).copied().unwrap_or(self.text.len())
    }

    /// End of a line, before its line break.
    fn line_end(&self, line: usize) -> usize {
        let start = self.line_start(line);
        let next = self.line_start(line + 1);
        let text = self.text.get(start..next).unwrap_or_default();
        start + text.trim_end_matches(['\n', '\r']).len()
    }

    /// The nearest character boundary at or before `offset`.
    fn floor(&self, offset: usize) -> usize {
        let mut at = offset.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

/// Finds lines through the index: the default implementation for strings walks the text from its start each time,
/// which is quadratic for a long file with many problems.
impl SourceCode for Source {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        context_lines_before: usize,
        context_lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let end = span.offset().checked_add(span.len()).filter(|end| *end <= self.text.len());
        let end = end.ok_or(MietteError::OutOfBounds)?;
        let (first, last) = (self.line_of(span.offset()), self.line_of(end));
        let from = first.saturating_sub(context_lines_before);
        let to = last.saturating_add(context_lines_after).min(self.lines.len() - 1);
        let long = (from..=to).any(|line| self.line_end(line) - self.line_start(line) > LONG_LINE);
        let (line, start, stop) = if context_lines_before == 0 && context_lines_after == 0 {
            // The caller wants the place of the span, not lines to show.
            (first, self.floor(span.offset()), end)
        } else if long {
            let start = self.floor(span.offset().saturating_sub(WINDOW)).max(self.line_start(first));
            (first, start, self.floor(end + WINDOW).min(self.line_end(last)).max(end))
        } else {
            (from, self.line_start(from), self.line_end(to))
        };
        let data = self.text.get(start..stop).ok_or(MietteError::OutOfBounds)?;
        let (_, column) = self.position(start);
        let shown = SourceSpan::new(start.into(), data.len());
        let count = data.lines().count();
        let contents =
            MietteSpanContents::new_named(self.name.clone(), data.as_bytes(), shown, line, column - 1, count);
        Ok(Box::new(contents))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_counts_characters_from_one() {
        let source = Source::new("f", "ab\nü=x\r\n\nlast");
        let cases = [(0, (1, 1)), (2, (1, 3)), (3, (2, 1)), (5, (2, 2)), (6, (2, 3)), (9, (3, 1)), (10, (4, 1))];
        for (offset, expected) in cases {
            assert_eq!(source.position(offset), expected, "offset {offset}");
        }
        assert_eq!(source.position(4), (2, 1), "inside a character: its start");
        assert_eq!(source.position(999), (4, 5), "past the end: the end");
    }

    #[test]
    fn byte_order_mark_is_not_a_column() {
        let source = Source::new("f", "\u{feff}kind: x");
        assert_eq!((source.position(0), source.text()), ((1, 1), "kind: x"));
    }

    #[test]
    fn first_line_of_a_span() {
        let source = Source::new("f", "a: |  \n  text\nb");
        assert_eq!(source.first_line(&(3..14)), 3..4);
        assert_eq!(source.first_line(&(0..0)), 0..1, "an empty span covers one character");
        assert_eq!(source.first_line(&(99..120)), 15..15, "nothing to cover at the end");
    }

    #[test]
    fn a_long_line_is_shown_as_a_window() {
        let source = Source::new("f", format!("short\n{}X{}\n", "a".repeat(500), "b".repeat(500)));
        let contents = source.read_span(&SourceSpan::new(506.into(), 1), 1, 1).expect("in bounds");
        assert_eq!(contents.data().len(), 2 * WINDOW + 1);
        assert_eq!((contents.line(), contents.column()), (1, 500 - WINDOW));
        let place = source.read_span(&SourceSpan::new(506.into(), 1), 0, 0).expect("in bounds");
        assert_eq!((place.data(), place.line(), place.column()), (&b"X"[..], 1, 500));
        assert!(source.read_span(&SourceSpan::new(5000.into(), 1), 1, 1).is_err());
    }
}
