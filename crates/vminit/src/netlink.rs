//! The few rtnetlink(7) requests that vminit makes, as bytes, and a socket that carries them out.

use crate::util::{poll, refuse, Context};
use firebuild_protocol::{ErrorCode, TaskError};
use rustix::event::{PollFd, PollFlags};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTNH_F_ONLINK: u32 = 4;

const IFF_UP: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;

/// What to do to a link: fields that are None stay as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkChange<'a> {
    pub name: Option<&'a str>,
    pub mtu: Option<u32>,
    pub up: Option<bool>,
    /// The MAC.
    pub address: Option<[u8; 6]>,
}

/// A route to `destination` (None: everything), through a gateway or straight out of the interface.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub index: u32,
    pub destination: Option<(IpAddr, u8)>,
    pub gateway: Option<IpAddr>,
    /// The gateway is reachable though no address of the interface covers it.
    pub onlink: bool,
}

/// A request under construction: netlink header, fixed part, attributes, each padded to 4 bytes.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        bytes.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(fixed);
        Self(bytes)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX).to_ne_bytes();
        if let Some(start) = self.0.get_mut(..4) {
            start.copy_from_slice(&length);
        }
        self.0
    }
}

fn link_message(index: u32, change: LinkChange<'_>) -> Vec<u8> {
    let flags = if change.up == Some(true) { IFF_UP } else { 0 };
    let mask = if change.up.is_some() { IFF_UP } else { 0 };
    let mut fixed = vec![0_u8; 4];
    fixed.extend_from_slice(&index.to_ne_bytes());
    fixed.extend_from_slice(&flags.to_ne_bytes());
    fixed.extend_from_slice(&mask.to_ne_bytes());
    let mut message = Message::new(RTM_NEWLINK, 0, &fixed);
    if let Some(name) = change.name {
        message.attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
    }
    if let Some(mtu) = change.mtu {
        message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
    }
    if let Some(address) = change.address {
        message.attribute(IFLA_ADDRESS, &address);
    }
    message.finish()
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => AddressFamily::INET.as_raw() as u8,
        IpAddr::V6(_) => AddressFamily::INET6.as_raw() as u8,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address_message(index: u32, address: IpAddr, prefix: u8) -> Vec<u8> {
    let mut fixed = vec![family(address), prefix, 0, SCOPE_UNIVERSE];
    fixed.extend_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &fixed);
    message.attribute(IFA_LOCAL, &octets(address));
    message.attribute(IFA_ADDRESS, &octets(address));
    match address {
        IpAddr::V4(address) if prefix < 31 => {
            let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            message.attribute(IFA_BROADCAST, &(u32::from(address) | host_bits).to_be_bytes());
        }
        IpAddr::V4(_) => {}
        // The host gave the address out: waiting a second for a duplicate would only delay the boot.
        IpAddr::V6(_) => message.attribute(IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes()),
    }
    message.finish()
}

/// The same message asks for it to be taken away: its fixed part and attributes are what the kernel listed.
fn deletion(listed: &[u8]) -> Vec<u8> {
    Message::new(RTM_DELADDR, 0, listed).finish()
}

/// The addresses of an interface among the messages of a dump, each as the kernel wrote it after the header; and whether the
/// dump ends with them.
fn take_addresses(mut messages: &[u8], index: u32) -> (Vec<Vec<u8>>, bool) {
    let mut found = Vec::new();
    while let Some(header) = messages.get(..16) {
        let number = |at: usize| header.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_ne_bytes);
        let kind = header.get(4..6).and_then(|two| two.try_into().ok()).map_or(NLMSG_DONE, u16::from_ne_bytes);
        let length = number(0).and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
        if matches!(kind, NLMSG_DONE | NLMSG_ERROR) || length < 16 {
            return (found, true);
        }
        let body = messages.get(16..length).unwrap_or_default();
        let of = body.get(4..8).and_then(|four| four.try_into().ok()).map(u32::from_ne_bytes);
        if kind == RTM_NEWADDR && of == Some(index) {
            found.push(body.to_vec());
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    (found, false)
}

/// None if a route has neither a destination nor a gateway to take its family from.
fn route_message(route: &Route) -> Option<Vec<u8>> {
    let family = family(route.gateway.or(route.destination.map(|(address, _)| address))?);
    let prefix = route.destination.map_or(0, |(_, prefix)| prefix);
    let scope = if route.gateway.is_some() { SCOPE_UNIVERSE } else { SCOPE_LINK };
    let mut fixed = vec![family, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST];
    let flags = if route.onlink { RTNH_F_ONLINK } else { 0 };
    fixed.extend_from_slice(&flags.to_ne_bytes());
    let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &fixed);
    if let Some((address, _)) = route.destination {
        message.attribute(RTA_DST, &octets(address));
    }
    if let Some(gateway) = route.gateway {
        message.attribute(RTA_GATEWAY, &octets(gateway));
    }
    message.attribute(RTA_OIF, &route.index.to_ne_bytes());
    Some(message.finish())
}

/// The errno of an acknowledgement, 0 for success; None for any other message.
fn acknowledgement(message: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(message.get(16..20)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then(|| code.saturating_neg())
}

/// A route socket. Every request waits for its acknowledgement.
pub struct RouteSocket(OwnedFd);

impl RouteSocket {
    pub fn open() -> Result<Self, TaskError> {
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .doing("open a route socket")?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0)).doing("bind a route socket")?;
        Ok(Self(socket))
    }

    pub fn change_link(&self, index: u32, change: LinkChange<'_>) -> std::io::Result<()> {
        self.carry_out(&link_message(index, change))
    }

    pub fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> std::io::Result<()> {
        self.carry_out(&address_message(index, address, prefix))
    }

    /// Take all its addresses from an interface.
    pub fn drop_addresses(&self, index: u32) -> std::io::Result<()> {
        let mut fixed = vec![0_u8; 4];
        fixed.extend_from_slice(&index.to_ne_bytes());
        rustix::net::send(&self.0, &Message::new(RTM_GETADDR, NLM_F_DUMP, &fixed).finish(), SendFlags::empty())?;
        let mut all = Vec::new();
        loop {
            let (found, is_last) = take_addresses(&self.receive()?, index);
            all.extend(found);
            if is_last {
                break;
            }
        }
        for listed in all {
            match self.carry_out(&deletion(&listed)) {
                // With the first address of a network its others may have gone.
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                other => other?,
            }
        }
        Ok(())
    }

    pub fn add_route(&self, route: &Route) -> std::io::Result<()> {
        match route_message(route) {
            Some(message) => self.carry_out(&message),
            None => Err(std::io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    fn carry_out(&self, message: &[u8]) -> std::io::Result<()> {
        rustix::net::send(&self.0, message, SendFlags::empty())?;
        loop {
            match acknowledgement(&self.receive()?) {
                Some(0) => return Ok(()),
                Some(errno) => return Err(std::io::Error::from_raw_os_error(errno)),
                None => {}
            }
        }
    }

    fn receive(&self) -> std::io::Result<Vec<u8>> {
        const PATIENCE: Duration = Duration::from_secs(5);
        if poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(PATIENCE))? == 0 {
            return Err(std::io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        let mut answer = vec![0_u8; 32 * 1024];
        let (count, _) = rustix::net::recv(&self.0, answer.as_mut_slice(), RecvFlags::empty())?;
        answer.truncate(count);
        Ok(answer)
    }
}

/// `192.168.127.5/24` or `fd00::5/64`.
pub fn parse_network(text: &str) -> Result<(IpAddr, u8), TaskError> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= longest).then_some((address, prefix))
    });
    match parsed {
        Some(network) => Ok(network),
        None => refuse(ErrorCode::BadRequest, format!("{text:?} is no address with a prefix length")),
    }
}

/// True if the network of `address/prefix` holds `other`.
pub fn covers(address: IpAddr, prefix: u8, other: IpAddr) -> bool {
    let (a, b) = (octets(address), octets(other));
    if a.len() != b.len() {
        return false;
    }
    let mut left = u32::from(prefix);
    a.iter().zip(&b).all(|(a, b)| {
        let bits = left.min(8);
        left -= bits;
        let mask = !0xff_u8.checked_shr(bits).unwrap_or(0);
        a & mask == b & mask
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        assert_eq!(parse_network("10.0.0.1/8").unwrap(), ("10.0.0.1".parse().unwrap(), 8));
        assert_eq!(parse_network("fd00::1/128").unwrap().1, 128);
        for bad in ["10.0.0.1", "10.0.0.1/33", "fd00::1/129", "x/8", "10.0.0.1/-1", ""] {
            assert!(parse_network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn coverage() {
        let covers = |network: &str, other: &str| {
            let (address, prefix) = parse_network(network).unwrap();
            covers(address, prefix, other.parse().unwrap())
        };
        assert!(covers("192.168.127.5/24", "192.168.127.1"));
        assert!(!covers("192.168.127.5/24", "192.168.128.1"));
        assert!(covers("192.168.127.5/20", "192.168.112.1"));
        assert!(!covers("10.0.0.5/32", "10.0.0.1"));
        assert!(covers("10.0.0.5/0", "1.2.3.4"));
        assert!(covers("fd00::5/64", "fd00::1"));
        assert!(!covers("fd00::5/64", "10.0.0.1"));
    }

    #[test]
    fn messages_are_as_long_as_they_say_and_padded() {
        let link = link_message(2, LinkChange { name: Some("eth0"), mtu: Some(1500), up: Some(true), address: None });
        assert_eq!(link.len(), 16 + 16 + 12 + 8);
        let address = address_message(2, "192.168.127.5".parse().unwrap(), 24);
        assert_eq!(address.len(), 16 + 8 + 3 * 8);
        assert_eq!(&address[44..48], [192, 168, 127, 255]);
        let gateway = "192.168.127.1".parse().ok();
        let route = route_message(&Route { index: 2, destination: None, gateway, onlink: true }).unwrap();
        assert_eq!(route.len(), 16 + 12 + 2 * 8);
        for message in [link, address, route] {
            assert_eq!(u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize, message.len());
        }
        assert!(route_message(&Route { index: 2, destination: None, gateway: None, onlink: false }).is_none());
    }

    #[test]
    fn addresses_of_a_dump() {
        let dumped = |index: u32, address: &str| address_message(index, address.parse().unwrap(), 24);
        let mut text = [dumped(2, "10.0.0.1"), dumped(3, "10.0.0.2"), dumped(2, "10.0.0.3")].concat();
        let (found, is_last) = take_addresses(&text, 2);
        assert_eq!((found.len(), is_last), (2, false));
        assert_eq!(deletion(&found[0]).len(), dumped(2, "10.0.0.1").len());
        text.extend([20, 0, 0, 0, 3, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(take_addresses(&text, 4).1);
        assert!(take_addresses(&[0; 16], 2).1);
    }

    #[test]
    fn acknowledgements() {
        let mut message = vec![0_u8; 36];
        message[4] = 2;
        assert_eq!(acknowledgement(&message), Some(0));
        message[16..20].copy_from_slice(&(-17_i32).to_ne_bytes());
        assert_eq!(acknowledgement(&message), Some(17));
        message[4] = 16;
        assert_eq!(acknowledgement(&message), None);
        assert_eq!(acknowledgement(&message[..10]), None);
    }
}
