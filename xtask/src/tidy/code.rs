//! Rust source as the rules see it: without comments, the contents of literals, and unit tests.

/// The lines of `text` up to its unit tests, comments and the contents of literals blanked.
/// Numbered from 1.
pub(super) fn lines(text: &str) -> Vec<(usize, String)> {
    let code = blank(without_tests(text));
    (1..).zip(code.lines().map(str::to_owned)).collect()
}

/// `text` up to the `#[cfg(test)]` in front of its `mod tests`.
pub(super) fn without_tests(text: &str) -> &str {
    let mut end = 0;
    let mut lines = text.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let next = lines.peek().map_or("", |next| next.trim_start());
        if line.trim_end() == "#[cfg(test)]" && next.starts_with("mod tests") {
            break;
        }
        end += line.len();
    }
    &text[..end]
}

/// Whether `word` occurs in `code` as a whole path segment or identifier.
pub(super) fn names(code: &str, word: &str) -> bool {
    let part_of_a_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].ends_with(part_of_a_word)
            && !code[at + word.len()..].starts_with(part_of_a_word)
    })
}

fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = skip(
            rest,
            code.ends_with(|c: char| c.is_alphanumeric() || c == '_'),
        );
        match skipped {
            Some(length) => {
                // The line numbers stay right: what is skipped leaves its line ends.
                code.extend(rest[..length].chars().filter(|c| *c == '\n'));
                code.push(' ');
                rest = &rest[length..];
            }
            None => {
                code.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    code
}

/// The length of the comment or literal that `rest` starts with.
fn skip(rest: &str, after_a_word: bool) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(block_comment(rest));
    }
    if let Some(body) = rest.strip_prefix('"') {
        return Some(1 + quoted(body, '"'));
    }
    if rest.starts_with('r') && !after_a_word {
        let hashes = rest[1..].bytes().take_while(|b| *b == b'#').count();
        let body = rest[1 + hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let length = body.find(&end).map_or(body.len(), |at| at + end.len());
        return Some(2 + hashes + length);
    }
    let body = rest.strip_prefix('\'')?;
    // A lifetime has no closing quote after its first character.
    let is_char = body.starts_with('\\') || body.chars().nth(1) == Some('\'');
    is_char.then(|| 1 + quoted(body, '\''))
}

/// The length up to and with the closing `quote`, escapes skipped.
fn quoted(body: &str, quote: char) -> usize {
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            return at + 1;
        }
    }
    body.len()
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        blank(text).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_and_literals_are_blank() {
        assert_eq!(code("a // b\nc"), "a c");
        assert_eq!(code("a /* b /* c */ d */ e"), "a e");
        assert_eq!(code(r#"f("a \" b", c)"#), "f( , c)");
        assert_eq!(code(r##"f(r#"a " b"#, c)"##), "f( , c)");
        assert_eq!(code(r"f('\'', '/', 'é', &'a str)"), "f( , , , &'a str)");
        assert_eq!(code("r#type b\"x\""), "r#type b");
    }

    #[test]
    fn line_numbers_stay_right() {
        let lines = lines("/* a\nb */ one\n\"c\nd\" two");
        assert_eq!(lines[1], (2, "  one".to_owned()).clone());
        assert!(lines[3].1.ends_with(" two"), "{lines:?}");
    }

    #[test]
    fn unit_tests_are_left_out() {
        let text = "fn a() {}\n\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n";
        assert_eq!(without_tests(text), "fn a() {}\n\n");
        let helper = "#[cfg(test)]\nfn a() {}\nfn b() {}\n";
        assert_eq!(without_tests(helper), helper);
    }

    #[test]
    fn words_are_whole() {
        assert!(names("use redis::Client", "redis"));
        assert!(!names("use redis_conn::Backend", "redis"));
        assert!(!names("my_redis()", "redis"));
    }
}
