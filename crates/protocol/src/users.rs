//! `user[:group]` resolved against the texts of a root's own `/etc/passwd` and `/etc/group` (passwd(5), group(5)).

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, `gid` included, ascending.
    pub groups: Vec<u32>,
    /// The name in passwd, if the user has an entry.
    pub name: Option<String>,
    /// The home directory in passwd, else `/`.
    pub home: String,
    /// The login shell in passwd, if there is one.
    pub shell: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PasswdEntry {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    pub shell: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupEntry {
    pub name: String,
    pub gid: u32,
    pub members: Vec<String>,
}

/// Lines that are no passwd entries are skipped, as the C library does.
pub fn parse_passwd(text: &[u8]) -> Vec<PasswdEntry> {
    String::from_utf8_lossy(text).lines().filter_map(passwd_line).collect()
}

fn passwd_line(line: &str) -> Option<PasswdEntry> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    fields.next()?;
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    fields.next()?;
    let home = fields.next()?;
    let shell = fields.next().unwrap_or_default();
    Some(PasswdEntry { name: name.to_owned(), uid, gid, home: home.to_owned(), shell: shell.to_owned() })
}

pub fn parse_group(text: &[u8]) -> Vec<GroupEntry> {
    String::from_utf8_lossy(text).lines().filter_map(group_line).collect()
}

fn group_line(line: &str) -> Option<GroupEntry> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    fields.next()?;
    let gid = fields.next()?.parse().ok()?;
    let members = fields.next().unwrap_or_default();
    let members = members.split(',').map(str::trim).filter(|member| !member.is_empty()).map(str::to_owned);
    Some(GroupEntry { name: name.to_owned(), gid, members: members.collect() })
}

/// The name of a user in /etc/passwd's text, if it has one.
pub fn find_name(uid: u32, passwd: &[u8]) -> Option<String> {
    parse_passwd(passwd).into_iter().find(|entry| entry.uid == uid).map(|entry| entry.name)
}

/// Resolve `user[:group]`; an empty user is root. Docker's rules: a name must exist, a number need not;
/// a number without an entry has gid 0; with an explicit group there are no further groups.
///
/// The error is a sentence that names what is missing.
pub fn resolve(spec: &str, passwd: &[u8], group: &[u8]) -> Result<Identity, String> {
    let (user, group_name) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entries = parse_passwd(passwd);
    let number: Option<u32> = parse_id(user);
    let entry = entries
        .iter()
        .find(|entry| entry.name == user)
        .or_else(|| number.and_then(|uid| entries.iter().find(|entry| entry.uid == uid)));
    let (uid, primary) = match (entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(format!("no user {user:?} in /etc/passwd")),
    };
    let groups = parse_group(group);
    let (gid, mut all) = match group_name {
        Some(name) => {
            let gid = resolve_group(name, &groups)?;
            (gid, vec![gid])
        }
        None => {
            let mut all = vec![primary];
            if let Some(entry) = entry {
                all.extend(groups.iter().filter(|group| group.members.contains(&entry.name)).map(|group| group.gid));
            }
            (primary, all)
        }
    };
    all.sort_unstable();
    all.dedup();
    let home = entry.map(|entry| entry.home.clone()).filter(|home| home.starts_with('/'));
    Ok(Identity {
        uid,
        gid,
        groups: all,
        name: entry.map(|entry| entry.name.clone()),
        home: home.unwrap_or_else(|| "/".to_owned()),
        shell: entry.map(|entry| entry.shell.clone()).filter(|shell| !shell.is_empty()),
    })
}

fn resolve_group(name: &str, groups: &[GroupEntry]) -> Result<u32, String> {
    groups
        .iter()
        .find(|group| group.name == name)
        .map(|group| group.gid)
        .or_else(|| parse_id(name))
        .ok_or_else(|| format!("no group {name:?} in /etc/group"))
}

/// A decimal id. The highest value is refused: to the kernel it means "leave as it is".
fn parse_id(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n# no\nbroken\n\
        redis:x:101:103::/var/lib/redis:/usr/sbin/nologin\nbad:x:-1:0::/:/bin/sh\n4000:x:7:8::/seven:\n";
    const GROUP: &[u8] = b"root:x:0:\nredis:x:103:\nadm:x:4:syslog,redis\nssl:x:110: redis ,root\n";

    #[test]
    fn a_name_brings_its_groups_and_home() {
        let identity = resolve("redis", PASSWD, GROUP).unwrap();
        assert_eq!((identity.uid, identity.gid), (101, 103));
        assert_eq!(identity.groups, [4, 103, 110]);
        assert_eq!(identity.home, "/var/lib/redis");
        assert_eq!(identity.name.as_deref(), Some("redis"));
    }

    #[test]
    fn empty_is_root() {
        let identity = resolve("", PASSWD, GROUP).unwrap();
        assert_eq!((identity.uid, identity.gid, identity.home.as_str()), (0, 0, "/root"));
        assert_eq!(identity.groups, [0, 110]);
        assert_eq!(resolve("", b"", b"").unwrap().groups, [0]);
    }

    #[test]
    fn numbers_need_no_entry() {
        let identity = resolve("65534", PASSWD, GROUP).unwrap();
        assert_eq!((identity.uid, identity.gid, identity.home.as_str(), identity.name), (65534, 0, "/", None));
        assert_eq!(resolve("101", PASSWD, GROUP).unwrap().gid, 103);
    }

    #[test]
    fn a_name_of_digits_comes_before_the_number() {
        assert_eq!(resolve("4000", PASSWD, GROUP).unwrap().uid, 7);
    }

    #[test]
    fn an_explicit_group_is_the_only_one() {
        let identity = resolve("redis:adm", PASSWD, GROUP).unwrap();
        assert_eq!((identity.gid, identity.groups), (4, vec![4]));
        assert_eq!(resolve("redis:999", PASSWD, GROUP).unwrap().gid, 999);
        assert_eq!(resolve("redis:", PASSWD, GROUP).unwrap().gid, 103);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(resolve("nobody", PASSWD, GROUP).unwrap_err().contains("nobody"));
        assert!(resolve("redis:wheel", PASSWD, GROUP).unwrap_err().contains("wheel"));
        assert!(resolve("-1", PASSWD, GROUP).is_err());
        assert!(resolve("4294967295", PASSWD, GROUP).is_err());
        assert!(resolve("bad", PASSWD, GROUP).is_err());
    }
}
