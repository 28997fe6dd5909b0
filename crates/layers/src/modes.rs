//! COPY's --chmod: an octal mode, or changes as chmod(1) has them, read and applied as BuildKit does (BSD's setmode(3)).

use crate::tree::Kind;

const SET_IDS: u32 = 0o6000;
const STICKY: u32 = 0o1000;
const ALL: u32 = 0o777;
/// What `a` and an absent "who" of `=` stand for: all but the sticky bit.
const STANDARD: u32 = SET_IDS | ALL;

/// What becomes of the modes of copied entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeChange {
    Octal(u32),
    Symbolic(Vec<Command>),
}

/// One change; applied in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Set(u32),
    Clear(u32),
    /// Set where the entry is a directory or was executable by anyone before all changes.
    SetIfExecutable(u32),
    /// The permissions that one class has, given to (or taken from) the classes of `to`.
    Copy {
        from: Class,
        to: u32,
        set: bool,
        clear: bool,
    },
}

/// How far a class's three bits are from the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    User = 6,
    Group = 3,
    Other = 0,
}

impl ModeChange {
    /// None if the text is neither an octal mode up to 07777 nor symbolic.
    pub fn parse(text: &str) -> Option<Self> {
        if text.bytes().next()?.is_ascii_digit() {
            let octal = text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
            let mode = if octal { u32::from_str_radix(text, 8).ok() } else { None };
            return mode.filter(|mode| *mode <= 0o7777).map(Self::Octal);
        }
        let mut commands = Vec::new();
        for clause in text.split(',') {
            parse_clause(clause.as_bytes(), &mut commands)?;
        }
        Some(Self::Symbolic(commands))
    }

    /// The mode of an entry of that kind which had `mode`.
    pub fn apply(&self, mode: u32, kind: Kind) -> u32 {
        match self {
            Self::Octal(octal) => *octal,
            Self::Symbolic(commands) => {
                let executable = mode & 0o111 != 0 || kind == Kind::Directory;
                commands.iter().fold(mode, |now, command| command.apply(now, executable))
            }
        }
    }

    /// The mode of a directory that is made to hold the copies.
    pub fn of_parents(&self) -> u32 {
        match self {
            Self::Octal(octal) => octal & ALL,
            Self::Symbolic(_) => 0o755,
        }
    }
}

impl Command {
    fn apply(self, mode: u32, executable: bool) -> u32 {
        match self {
            Self::Set(bits) => mode | bits,
            Self::Clear(bits) => mode & !bits,
            Self::SetIfExecutable(bits) => mode | if executable { bits } else { 0 },
            Self::Copy { from, to, set, clear } => {
                let value = (mode >> from as u32) & 7;
                let cleared = if clear { spread(if set { 7 } else { value }, to) } else { 0 };
                (mode & !cleared) | if set { spread(value, to) } else { 0 }
            }
        }
    }
}

/// Three bits in each of the classes that `to` has.
fn spread(value: u32, to: u32) -> u32 {
    [Class::User, Class::Group, Class::Other]
        .into_iter()
        .filter(|class| to & (4 << *class as u32) != 0)
        .fold(0, |bits, class| bits | value << class as u32)
}

/// `[ugoa]*([-+=][rwxXstugo]*)+`.
fn parse_clause(clause: &[u8], commands: &mut Vec<Command>) -> Option<()> {
    let named = clause.iter().take_while(|byte| b"ugoa".contains(byte)).count();
    let (who_text, mut rest) = clause.split_at(named);
    let mut who = 0;
    for byte in who_text {
        who |= match byte {
            b'u' => 0o4700,
            b'g' => 0o2070,
            b'o' => 0o007,
            _ => STANDARD,
        };
    }
    if rest.is_empty() {
        return None;
    }
    while let Some((operator, after)) = rest.split_first() {
        if !b"+-=".contains(operator) {
            return None;
        }
        let count = after.iter().take_while(|byte| b"rwxXstugo".contains(byte)).count();
        let (permissions, next) = after.split_at(count);
        who &= !STICKY;
        who = parse_action(*operator, permissions, who, commands);
        rest = next;
    }
    Some(())
}

/// One operator with its permissions. Returns whom it was about: `t` adds the sticky bit.
fn parse_action(operator: u8, permissions: &[u8], mut who: u32, commands: &mut Vec<Command>) -> u32 {
    let (mut bits, mut executable) = (0, 0);
    // `=` clears once, before the first thing that it sets.
    let mut cleared = operator != b'=';
    let limit = |who: u32, bits: u32| if who == 0 { bits } else { who & bits };
    let flush = |who: u32, bits: u32, cleared: &mut bool, commands: &mut Vec<Command>| {
        if !*cleared {
            commands.push(Command::Clear(if who == 0 { STANDARD } else { who }));
            *cleared = true;
        }
        commands.push(if operator == b'-' { Command::Clear(limit(who, bits)) } else { Command::Set(limit(who, bits)) });
    };
    for permission in permissions {
        let not_only_others = who == 0 || who & !0o007 != 0;
        match permission {
            b'r' => bits |= 0o444,
            b'w' => bits |= 0o222,
            b'x' => bits |= 0o111,
            b'X' if operator == b'+' => executable = 0o111,
            b's' if not_only_others => bits |= SET_IDS,
            b't' if not_only_others => {
                who |= STICKY;
                bits |= STICKY;
            }
            b'u' | b'g' | b'o' => {
                if bits != 0 {
                    flush(who, bits, &mut cleared, commands);
                    bits = 0;
                }
                cleared = true;
                if executable != 0 {
                    commands.push(Command::SetIfExecutable(limit(who, executable)));
                    executable = 0;
                }
                let from = match permission {
                    b'u' => Class::User,
                    b'g' => Class::Group,
                    _ => Class::Other,
                };
                let to = if who == 0 { ALL } else { who };
                commands.push(Command::Copy { from, to, set: operator != b'-', clear: operator != b'+' });
            }
            _ => {}
        }
    }
    if bits != 0 || !cleared {
        flush(who, bits, &mut cleared, commands);
    }
    if executable != 0 {
        commands.push(Command::SetIfExecutable(limit(who, executable)));
    }
    who
}

#[cfg(test)]
mod tests {
    use super::ModeChange;
    use crate::tree::Kind;

    #[test]
    fn modes_become_what_chmod_makes_of_them() {
        // Each as chmod(1) of a BSD does it to a file, without a umask.
        for (text, before, after) in [
            ("644", 0o4755, 0o644),
            ("7777", 0, 0o7777),
            ("0", 0o777, 0),
            ("u+x", 0o644, 0o744),
            ("u+x,go-w", 0o666, 0o744),
            ("+x", 0o644, 0o755),
            ("a=r", 0o777, 0o444),
            ("=rw", 0o777, 0o666),
            ("go=", 0o777, 0o700),
            ("go=u-w", 0o751, 0o755),
            ("g=u", 0o750, 0o770),
            ("o-g", 0o777, 0o770),
            ("u=rwx,go=rx", 0, 0o755),
            ("u+s", 0o755, 0o4755),
            ("g+s", 0o755, 0o2755),
            ("o+s", 0o755, 0o755),
            ("+t", 0o777, 0o1777),
            ("+s", 0o755, 0o6755),
            ("u=", 0o4755, 0o055),
            ("+X", 0o644, 0o644),
            ("+X", 0o744, 0o755),
            ("a-x,a+X", 0o755, 0o755),
            ("=rw,+X", 0o755, 0o777),
            ("u+x-w", 0o644, 0o544),
            ("+", 0o644, 0o644),
            ("a+rX", 0o600, 0o644),
        ] {
            let change = ModeChange::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(change.apply(before, Kind::File), after, "{text} of {before:o}");
        }
        let directory = ModeChange::parse("a+rX").map(|change| change.apply(0o600, Kind::Directory));
        assert_eq!(directory, Some(0o755));
    }

    #[test]
    fn what_is_no_mode() {
        for text in ["", "u", "8", "0888", "77777", "u+q", "rwx", "u+x,", ",u+x", "-1x?", "u+x go-w", "17777"] {
            assert_eq!(ModeChange::parse(text), None, "{text:?}");
        }
    }
}
