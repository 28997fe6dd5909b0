//! The patterns of COPY's sources (Go's `path/filepath.Match`), expanded inside a tree.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::paths::{self, Missing};
use crate::tree::{self, Kind};

/// The paths that match, sorted; a path without wildcards is itself, whether it exists or not.
///
/// Links are followed up to the first component with a wildcard, and not behind it, as in `BuildKit`.
///
/// Errors: EINVAL for a pattern that does not parse.
pub fn expand(root: BorrowedFd<'_>, pattern: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let parts = paths::split(pattern);
    let first = parts.iter().position(|part| has_wildcard(part)).unwrap_or(parts.len());
    let (above, below) = parts.split_at(first);
    let prefix: Vec<Vec<u8>> = above.iter().map(|part| unescape(part)).collect();
    if below.is_empty() {
        return Ok(vec![paths::join(&prefix)]);
    }
    let mut found = vec![prefix];
    for (number, part) in below.iter().enumerate() {
        matches(part, b"")?;
        let last = number + 1 == below.len();
        let mut next = Vec::new();
        for prefix in found {
            // A prefix that is no directory has nothing that could match.
            let Ok(dir) = paths::open_dir(root, &paths::join(&prefix), Missing::Fail) else { continue };
            for name in tree::names(dir.as_fd())? {
                if !matches(part, &name)? {
                    continue;
                }
                if last || tree::find(dir.as_fd(), &name)?.is_some_and(|info| info.kind == Kind::Directory) {
                    next.push([&prefix[..], std::slice::from_ref(&name)].concat());
                }
            }
        }
        found = next;
    }
    Ok(found.iter().map(|path| paths::join(path)).collect())
}

fn has_wildcard(part: &[u8]) -> bool {
    let mut bytes = part.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return true,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
    false
}

/// A component without wildcards as the name that it means.
fn unescape(part: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(part.len());
    let mut bytes = part.iter();
    while let Some(byte) = bytes.next() {
        name.push(if *byte == b'\\' { *bytes.next().unwrap_or(byte) } else { *byte });
    }
    name
}

/// Whether one name matches one component of a pattern.
fn matches(pattern: &[u8], name: &[u8]) -> io::Result<bool> {
    let mut tokens = Vec::new();
    let mut rest = pattern;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        tokens.push(match first {
            b'*' => Token::Any,
            b'?' => Token::One,
            b'[' => read_class(&mut rest)?,
            b'\\' => {
                let (escaped, tail) = rest.split_first().ok_or_else(bad_pattern)?;
                rest = tail;
                Token::Byte(*escaped)
            }
            byte => Token::Byte(*byte),
        });
    }
    Ok(matches_tokens(&tokens, name))
}

enum Token {
    /// `*`: any bytes.
    Any,
    /// `?`: one character.
    One,
    Byte(u8),
    /// `[a-z]`, `[^a-z]`.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

fn matches_tokens(tokens: &[Token], name: &[u8]) -> bool {
    // Where to go back to when what follows the last `*` does not match: linear, not exponential.
    let (mut at, mut token) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    loop {
        let rest = name.get(at..).unwrap_or_default();
        let step = match tokens.get(token) {
            Some(Token::Any) => {
                back = Some((at, token));
                token += 1;
                continue;
            }
            Some(Token::Byte(byte)) => (rest.first() == Some(byte)).then_some(1),
            Some(Token::One) => first_char(rest).map(|(_, length)| length),
            Some(Token::Class { negated, ranges }) => first_char(rest).and_then(|(character, length)| {
                let inside = ranges.iter().any(|(low, high)| (*low..=*high).contains(&character));
                (inside != *negated).then_some(length)
            }),
            None if rest.is_empty() => return true,
            None => None,
        };
        match (step, back) {
            (Some(length), _) => {
                at += length;
                token += 1;
            }
            (None, Some((start, star))) if start < name.len() => {
                at = start + 1;
                token = star + 1;
                back = Some((at, star));
            }
            _ => return false,
        }
    }
}

fn read_class(rest: &mut &[u8]) -> io::Result<Token> {
    let mut take = || -> io::Result<char> {
        let (character, length) = first_char(rest).ok_or_else(bad_pattern)?;
        *rest = rest.get(length..).unwrap_or_default();
        Ok(character)
    };
    let mut ranges = Vec::new();
    let mut negated = false;
    let mut character = take()?;
    if character == '^' {
        negated = true;
        character = take()?;
    }
    loop {
        if character == ']' && !ranges.is_empty() {
            return Ok(Token::Class { negated, ranges });
        }
        if character == ']' || character == '-' {
            return Err(bad_pattern());
        }
        let low = if character == '\\' { take()? } else { character };
        character = take()?;
        let mut high = low;
        if character == '-' {
            high = take()?;
            if high == '\\' {
                high = take()?;
            } else if high == ']' || high == '-' {
                return Err(bad_pattern());
            }
            character = take()?;
        }
        ranges.push((low, high));
    }
}

/// The first character and its length; a byte that is no UTF-8 counts as one character.
fn first_char(bytes: &[u8]) -> Option<(char, usize)> {
    let first = bytes.first()?;
    let window = bytes.get(..bytes.len().min(4)).unwrap_or_default();
    for length in 1..=window.len() {
        if let Some(text) = window.get(..length).and_then(|part| std::str::from_utf8(part).ok()) {
            return text.chars().next().map(|character| (character, length));
        }
    }
    Some((char::from(*first), 1))
}

fn bad_pattern() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_as_go_has_them() {
        let good = [
            ("*", "abc", true),
            ("*.so", "libc.so", true),
            ("*.so", "libc.so.6", false),
            ("lib*.so*", "libc.so.6", true),
            ("a?c", "abc", true),
            ("a?c", "a\u{e9}c", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[^a-c]x", "zx", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "a1b2b3", false),
            ("*", ".hidden", true),
            ("[\\]]", "]", true),
        ];
        for (pattern, name, expected) in good {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()).expect(pattern), expected, "{pattern} {name}");
        }
        for pattern in ["[", "[]", "[a", "[a-", "[-a]", "\\", "[a-]"] {
            assert!(matches(pattern.as_bytes(), b"a").is_err(), "{pattern}");
        }
    }

    #[test]
    fn many_stars_do_not_take_for_ever() {
        let pattern = "*a".repeat(40);
        let name = "a".repeat(39);
        assert!(!matches(pattern.as_bytes(), name.as_bytes()).expect("pattern"));
    }
}
