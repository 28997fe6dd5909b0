//! The files that tell a guest who and where it is: `/etc/hosts` and its kin, made from the boot document.

use crate::files;
use crate::util::{refuse, Context};
use firebuild_protocol::message::{Dns, Interface, MetadataUser};
use firebuild_protocol::users::parse_passwd;
use firebuild_protocol::{ErrorCode, TaskError};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// `/etc/hosts`: the loopback names, and the machine's own name on its first address (or on 127.0.1.1 without one).
pub fn hosts_text(hostname: &str, interfaces: &[Interface]) -> String {
    let first = interfaces.iter().flat_map(|interface| &interface.addresses).next();
    let address = first.map_or("127.0.1.1", |address| address.split('/').next().unwrap_or(address));
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                    ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
        .to_owned();
    if !hostname.is_empty() {
        let short = hostname.split('.').next().unwrap_or(hostname);
        let names = if short == hostname { hostname.to_owned() } else { format!("{hostname} {short}") };
        let _ = writeln!(text, "{address}\t{names}");
    }
    text
}

/// `/etc/resolv.conf` (resolv.conf(5)); None where the host gave no name server.
pub fn resolv_conf_text(dns: &Dns) -> Option<String> {
    if dns.nameservers.is_empty() {
        return None;
    }
    let mut text = String::new();
    if !dns.search.is_empty() {
        let _ = writeln!(text, "search {}", dns.search.join(" "));
    }
    for server in &dns.nameservers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    Some(text)
}

/// `/etc/nsswitch.conf` (nsswitch.conf(5)) for an image that has none.
const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n\
                        protocols: files\nservices: files\nethers: files\nrpc: files\n";

/// `/etc/profile.d/run-env.sh`: the run's environment for login shells. Names that no shell takes are left out.
pub fn run_env_text(env: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (name, value) in env.iter().filter(|(name, _)| is_shell_name(name)) {
        let _ = writeln!(text, "export {name}='{}'", value.replace('\'', "'\\''"));
    }
    text
}

fn is_shell_name(name: &str) -> bool {
    let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    starts_well && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// A machine-id(5) for a machine's id: 32 hexadecimal digits, the same at each start of the machine, another one for
/// every other machine (20 letters and digits are fewer than 2^128, and each step can be undone).
pub fn machine_id(id: &str) -> String {
    // Odd, so that the multiplication loses nothing; it spreads the id over all digits.
    const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
    let number = id.bytes().fold(1_u128, |number, byte| {
        let digit = char::from(byte).to_digit(36).unwrap_or_default();
        number.wrapping_mul(36).wrapping_add(u128::from(digit))
    });
    format!("{:032x}", number.wrapping_mul(SPREAD))
}

/// What could break out of its line in one of these files.
fn check_words<'a>(what: &str, words: impl IntoIterator<Item = &'a String>) -> Result<(), TaskError> {
    for word in words {
        if word.is_empty() || word.len() > 255 || word.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return refuse(ErrorCode::BadRequest, format!("{word:?} is no {what}"));
        }
    }
    Ok(())
}

/// Write resolv.conf alone: what a build machine needs in its initramfs.
pub fn write_resolv_conf(dns: &Dns) -> Result<(), TaskError> {
    check_words("name server", &dns.nameservers)?;
    check_words("search domain", &dns.search)?;
    check_words("resolver option", &dns.options)?;
    match resolv_conf_text(dns) {
        Some(text) => files::replace("/etc", "resolv.conf", &text),
        None => Ok(()),
    }
}

/// Write hosts alone.
pub fn write_hosts(hostname: &str, interfaces: &[Interface]) -> Result<(), TaskError> {
    check_words("address", interfaces.iter().flat_map(|interface| &interface.addresses))?;
    files::replace("/etc", "hosts", &hosts_text(hostname, interfaces))
}

/// Write them all into the root that is now `/`.
pub fn write_all(
    id: &str,
    hostname: &str,
    interfaces: &[Interface],
    dns: &Dns,
    env: &BTreeMap<String, String>,
) -> Result<(), TaskError> {
    if !hostname.is_empty() {
        check_words("host name", [&hostname.to_owned()])?;
        files::replace("/etc", "hostname", &format!("{hostname}\n"))?;
    }
    files::replace("/etc", "machine-id", &format!("{}\n", machine_id(id)))?;
    write_hosts(hostname, interfaces)?;
    write_resolv_conf(dns)?;
    if !files::exists("/etc/nsswitch.conf") {
        files::replace("/etc", "nsswitch.conf", NSSWITCH)?;
    }
    files::replace("/etc/profile.d", "run-env.sh", &run_env_text(env))
}

/// Write the users' `authorized_keys`. A user that the image does not have, or whose home is not what it
/// should be, is told in the result and does not keep the machine from booting.
pub fn write_keys(users: &BTreeMap<String, MetadataUser>, passwd: &[u8]) -> Vec<String> {
    let mut failures = Vec::new();
    for (name, user) in users.iter().filter(|(_, user)| !user.ssh_keys.is_empty()) {
        if let Err(error) = write_key(name, &user.ssh_keys, passwd) {
            failures.push(format!("SSH keys of {name:?}: {error}"));
        }
    }
    failures
}

/// Take the users' `authorized_keys` away. A user who is not there, or has none, has none.
pub fn remove_keys(names: &[String]) -> Result<(), TaskError> {
    let passwd = files::read_or_empty("/etc/passwd", 4 << 20)?;
    for entry in parse_passwd(&passwd).into_iter().filter(|entry| names.contains(&entry.name)) {
        let path = format!("{}/.ssh/authorized_keys", entry.home);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).doing(format_args!("remove {path}"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn write_key(name: &str, keys: &str, passwd: &[u8]) -> Result<(), TaskError> {
    let Some(entry) = parse_passwd(passwd).into_iter().find(|entry| entry.name == name) else {
        return refuse(ErrorCode::NoSuchUser, "no such user in /etc/passwd");
    };
    let home_is_new = !files::exists(&entry.home);
    let home = files::open_directory(&entry.home)?;
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    if home_is_new {
        rustix::fs::fchown(&home, Some(uid), Some(gid)).doing("own the home directory")?;
    }
    match rustix::fs::mkdirat(&home, ".ssh", Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(errno).doing("make .ssh"),
    }
    // Not through a link: the user could point it at another user's.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(&home, ".ssh", flags, Mode::empty()).doing("open .ssh")?;
    rustix::fs::fchown(&directory, Some(uid), Some(gid)).doing("own .ssh")?;
    rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o700)).doing("protect .ssh")?;
    let text = if keys.ends_with('\n') { keys.to_owned() } else { format!("{keys}\n") };
    files::replace_at(&directory, "authorized_keys", text.as_bytes(), 0o600, Some((entry.uid, entry.gid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(addresses: &[&str]) -> Interface {
        Interface {
            name: "eth0".to_owned(),
            mac: "b6:16:f2:3d:29:cf".to_owned(),
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            gateway: None,
            gateway6: None,
            mtu: None,
        }
    }

    #[test]
    fn hosts() {
        let text = hosts_text("web.example.org", &[interface(&["192.168.127.5/24", "fd00::5/64"])]);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("192.168.127.5\tweb.example.org web\n"), "{text}");
        assert!(hosts_text("web", &[]).ends_with("127.0.1.1\tweb\n"));
        assert!(!hosts_text("", &[]).contains("127.0.1.1"));
    }

    #[test]
    fn machine_ids() {
        let id = machine_id("gac0vpp30fdw0lqi9gld");
        assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()), "{id}");
        assert_eq!(id, machine_id("gac0vpp30fdw0lqi9gld"));
        assert_ne!(id, machine_id("gac0vpp30fdw0lqi9gle"));
        assert_ne!(machine_id("0"), machine_id("00"));
    }

    #[test]
    fn resolv_conf() {
        let dns = Dns {
            nameservers: vec!["1.1.1.1".into(), "fd00::1".into()],
            search: vec!["a.example".into(), "b.example".into()],
            options: vec!["ndots:2".into()],
        };
        let expected = "search a.example b.example\nnameserver 1.1.1.1\nnameserver fd00::1\noptions ndots:2\n";
        assert_eq!(resolv_conf_text(&dns).unwrap(), expected);
        assert_eq!(resolv_conf_text(&Dns::default()), None);
    }

    #[test]
    fn profile_lines_are_quoted_and_odd_names_left_out() {
        let env = BTreeMap::from([
            ("A".to_owned(), "it's $HOME\nand more".to_owned()),
            ("B-C".to_owned(), "x".to_owned()),
            ("1D".to_owned(), "x".to_owned()),
        ]);
        assert_eq!(run_env_text(&env), "export A='it'\\''s $HOME\nand more'\n");
    }

    #[test]
    fn words_that_leave_their_line_are_refused() {
        assert!(check_words("name server", &["1.1.1.1\nnameserver 6.6.6.6".to_owned()]).is_err());
        assert!(check_words("name server", &[String::new()]).is_err());
        assert!(check_words("name server", &["fe80::1%eth0".to_owned()]).is_ok());
    }
}
