//! Which entries of a tree are copied: patterns as `.dockerignore` has them (moby/patternmatcher), the last match wins.

/// What one token of a pattern matches.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Char(char),
    /// `?`: one character of a name.
    Any,
    /// `*`: any part of a name.
    Star,
    /// `**` at the end: anything.
    All,
    /// `**/` begins: it may be left out with the token behind it.
    Folders,
    /// `**/` goes on: anything that ends with a slash.
    InFolders,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

#[derive(Clone, Debug)]
struct Pattern {
    tokens: Vec<Token>,
    exception: bool,
}

/// Patterns in their order; those with a leading `!` make exceptions.
#[derive(Clone, Debug)]
pub struct Rules {
    patterns: Vec<Pattern>,
}

/// Which patterns have matched a path or a directory above it; handed down a walk.
#[derive(Clone, Debug, Default)]
pub struct Matches {
    found: Vec<bool>,
}

impl Rules {
    /// None if a pattern is malformed. They are clean paths without a leading slash.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let parse = |text: &str| {
            let (text, exception) = text.strip_prefix('!').map_or((text, false), |rest| (rest, true));
            Some(Pattern { tokens: parse_tokens(text)?, exception })
        };
        Some(Self { patterns: texts.into_iter().map(parse).collect::<Option<_>>()? })
    }

    /// Whether the path is matched, given what matched the directory that it is in.
    pub fn check(&self, path: &str, parent: &Matches) -> (bool, Matches) {
        let path: Vec<char> = path.chars().collect();
        let mut found = Vec::with_capacity(self.patterns.len());
        let mut matched = false;
        for (index, pattern) in self.patterns.iter().enumerate() {
            let hit = parent.found.get(index) == Some(&true) || matches(&pattern.tokens, &path);
            if hit {
                matched = !pattern.exception;
            }
            found.push(hit);
        }
        (matched, Matches { found })
    }

    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether something below a matched directory may be an exception.
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.exception)
    }
}

/// Whether a pattern names one path only.
pub fn is_literal(pattern: &str) -> bool {
    let mut escaped = false;
    for char in pattern.chars() {
        if !escaped && matches!(char, '*' | '?' | '[') {
            return false;
        }
        escaped = char == '\\' && !escaped;
    }
    true
}

fn parse_tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut text = text;
    // A leading `**` whose rest is plain text compares ends alone: `**foo` matches `xfoo`. With any other wildcard
    // behind it, it stands for whole folders: so patternmatcher has it.
    if let Some(rest) = text.strip_prefix("**") {
        if !rest.contains(['*', '?', '[', ']', '\\']) {
            let folders = rest.strip_prefix('/');
            if folders.is_some() {
                tokens.extend([Token::Folders, Token::InFolders]);
            } else {
                tokens.push(Token::All);
            }
            text = folders.unwrap_or(rest);
        }
    }
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        let token = match char {
            '*' if chars.next_if_eq(&'*').is_some() => {
                chars.next_if_eq(&'/');
                if chars.peek().is_none() {
                    Token::All
                } else {
                    tokens.push(Token::Folders);
                    Token::InFolders
                }
            }
            '*' => Token::Star,
            '?' => Token::Any,
            '[' => parse_class(&mut chars)?,
            '\\' => Token::Char(chars.next()?),
            char => Token::Char(char),
        };
        tokens.push(token);
    }
    Some(tokens)
}

fn parse_class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Token> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Some(Token::Class { negated, ranges });
        }
        let low = parse_class_char(chars)?;
        let high = if chars.next_if_eq(&'-').is_some() { parse_class_char(chars)? } else { low };
        if high < low {
            return None;
        }
        ranges.push((low, high));
    }
}

fn parse_class_char(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    match chars.next()? {
        '-' | ']' => None,
        '\\' => chars.next(),
        char => Some(char),
    }
}

/// All positions of the pattern at once: time is the product of the lengths, whatever the pattern is.
fn matches(tokens: &[Token], path: &[char]) -> bool {
    let mut states = vec![false; tokens.len() + 1];
    set(&mut states, 0);
    skip(tokens, &mut states);
    for char in path {
        let mut next = vec![false; tokens.len() + 1];
        for (index, token) in tokens.iter().enumerate() {
            if states.get(index) != Some(&true) {
                continue;
            }
            let (stays, moves) = match token {
                Token::Char(wanted) => (false, wanted == char),
                Token::Any => (false, *char != '/'),
                Token::Star => (*char != '/', false),
                Token::All => (true, false),
                Token::Folders => (false, false),
                Token::InFolders => (true, *char == '/'),
                Token::Class { negated, ranges } => {
                    (false, ranges.iter().any(|(low, high)| low <= char && char <= high) != *negated)
                }
            };
            if stays {
                set(&mut next, index);
            }
            if moves {
                set(&mut next, index + 1);
            }
        }
        if !next.contains(&true) {
            return false;
        }
        skip(tokens, &mut next);
        states = next;
    }
    states.last() == Some(&true)
}

/// Passes what may match nothing.
fn skip(tokens: &[Token], states: &mut [bool]) {
    for (index, token) in tokens.iter().enumerate() {
        if states.get(index) != Some(&true) {
            continue;
        }
        match token {
            Token::Star | Token::All => set(states, index + 1),
            Token::Folders => {
                set(states, index + 1);
                set(states, index + 2);
            }
            _ => {}
        }
    }
}

fn set(states: &mut [bool], index: usize) {
    if let Some(state) = states.get_mut(index) {
        *state = true;
    }
}

#[cfg(test)]
mod tests {
    use super::{is_literal, Matches, Rules};

    /// Walks down the path as a copy does.
    fn check(patterns: &[&str], path: &str) -> bool {
        let rules = Rules::parse(patterns.iter().copied()).expect("patterns");
        let (mut verdict, mut above) = (false, Matches::default());
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            (verdict, above) = rules.check(path.get(..end).expect("a part"), &above);
        }
        verdict
    }

    #[test]
    fn patterns_match_as_in_a_dockerignore() {
        for (patterns, path, expected) in [
            (&["a"][..], "a", true),
            (&["a"], "a/b/c", true),
            (&["a"], "b/a", false),
            (&["*.txt"], "x.txt", true),
            (&["*.txt"], "d/x.txt", false),
            (&["*/*.txt"], "d/x.txt", true),
            (&["**/*.txt"], "x.txt", true),
            (&["**/*.txt"], "d/e/x.txt", true),
            (&["**/x"], "yx", false),
            (&["d/**"], "d/e/f", true),
            (&["d/**/f"], "d/f", true),
            (&["d/**/f"], "d/e/e/f", true),
            (&["d/**/f"], "d/xf", false),
            (&["**foo"], "xfoo", true),
            (&["**foo*"], "xfoo", false),
            (&["?"], "a", true),
            (&["?"], "ab", false),
            (&["[a-c]x"], "bx", true),
            (&["[^a-c]x"], "bx", false),
            (&["\\*"], "*", true),
            (&["\\*"], "a", false),
            (&["d", "!d/keep"], "d/keep", false),
            (&["d", "!d/keep"], "d/other", true),
            (&["!d/keep", "d"], "d/keep", true),
            (&["*"], "a", true),
            (&[], "a", false),
        ] {
            assert_eq!(check(patterns, path), expected, "{patterns:?} {path}");
        }
        assert!(is_literal("a/b\\*") && !is_literal("a/*") && !is_literal("[a]") && !is_literal("\\\\?"));
    }

    #[test]
    fn malformed_patterns() {
        for pattern in ["[", "[a", "[b-a]", "[-a]", "a\\", "[a\\"] {
            assert!(Rules::parse([pattern]).is_none(), "{pattern}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let pattern = "*a".repeat(40);
        assert!(!check(&[&pattern], &"a".repeat(39)));
        assert!(check(&[&pattern], &"a".repeat(300)));
    }
}
