//! The guest's interfaces as the boot document says: matched by MAC, named, addressed, routed.

use crate::netlink::{covers, parse_network, LinkChange, Route, RouteSocket};
use crate::transport::Uevents;
use crate::util::{parse_hex, refuse, Context, Deadline};
use firebuild_protocol::message::{Interface, Mmds};
use firebuild_protocol::{ErrorCode, TaskError};
use std::fs;
use std::net::IpAddr;

const CLASS_NET: &str = "/sys/class/net";

/// Bring everything up, `lo` included. Interfaces that the kernel has not announced yet are waited for.
pub fn configure(interfaces: &[Interface], mmds: Option<&Mmds>, deadline: Deadline) -> Result<(), TaskError> {
    let socket = RouteSocket::open()?;
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    socket.change_link(index_of("lo")?, up).doing("bring lo up")?;
    let uevents = Uevents::subscribe();
    for interface in interfaces {
        let mac = interface.mac.to_ascii_lowercase();
        let Some(found) = uevents.wait_for(deadline, || find_by_mac(&mac)) else {
            return refuse(ErrorCode::NotFound, format!("no network interface with MAC {mac}"));
        };
        rename(&socket, &found, &interface.name)?;
    }
    for interface in interfaces {
        bring_up(&socket, interface)?;
    }
    mmds.map_or(Ok(()), |mmds| route_to_metadata(&socket, mmds))
}

/// Give the interfaces that are there, by their names, other MACs, addresses and routes.
pub fn reconfigure(interfaces: &[Interface], mmds: Option<&Mmds>) -> Result<(), TaskError> {
    let socket = RouteSocket::open()?;
    for interface in interfaces {
        let name = &interface.name;
        let index = index_of(name)?;
        // Its routes and neighbours go with that.
        let down = LinkChange { up: Some(false), ..LinkChange::default() };
        socket.change_link(index, down).doing(format_args!("take {name} down"))?;
        socket.drop_addresses(index).doing(format_args!("take the addresses from {name}"))?;
        let address = LinkChange { address: Some(parse_mac(&interface.mac)?), ..LinkChange::default() };
        socket.change_link(index, address).doing(format_args!("give {name} the MAC {}", interface.mac))?;
    }
    for interface in interfaces {
        bring_up(&socket, interface)?;
    }
    mmds.map_or(Ok(()), |mmds| route_to_metadata(&socket, mmds))
}

fn parse_mac(text: &str) -> Result<[u8; 6], TaskError> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| parse_hex(part).and_then(|bytes| <[u8; 1]>::try_from(bytes).ok().map(|[byte]| byte)))
        .collect();
    match bytes.and_then(|bytes| bytes.try_into().ok()) {
        Some(mac) => Ok(mac),
        None => refuse(ErrorCode::BadRequest, format!("{text:?} is no MAC")),
    }
}

fn index_of(name: &str) -> Result<u32, TaskError> {
    let path = format!("{CLASS_NET}/{name}/ifindex");
    let text = fs::read_to_string(&path).doing(format_args!("read {path}"))?;
    text.trim().parse().map_err(|_| TaskError::new(ErrorCode::Io, format!("{path} holds no number")))
}

fn find_by_mac(mac: &str) -> Option<String> {
    fs::read_dir(CLASS_NET).ok()?.flatten().find_map(|entry| {
        let address = fs::read_to_string(entry.path().join("address")).ok()?;
        (address.trim() == mac).then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

/// A name that another interface has at the moment is taken from it first.
fn rename(socket: &RouteSocket, from: &str, to: &str) -> Result<(), TaskError> {
    if from == to {
        return Ok(());
    }
    if let Ok(other) = index_of(to) {
        let aside = format!("was{other}");
        socket
            .change_link(other, LinkChange { name: Some(&aside), ..LinkChange::default() })
            .doing(format_args!("rename interface {to} to {aside}"))?;
    }
    socket
        .change_link(index_of(from)?, LinkChange { name: Some(to), ..LinkChange::default() })
        .doing(format_args!("rename interface {from} to {to}"))
}

fn bring_up(socket: &RouteSocket, interface: &Interface) -> Result<(), TaskError> {
    let name = &interface.name;
    let index = index_of(name)?;
    socket
        .change_link(index, LinkChange { mtu: interface.mtu, up: Some(true), ..LinkChange::default() })
        .doing(format_args!("bring {name} up"))?;
    let mut networks = Vec::new();
    for text in &interface.addresses {
        let (address, prefix) = parse_network(text)?;
        socket.add_address(index, address, prefix).doing(format_args!("give {name} the address {text}"))?;
        networks.push((address, prefix));
    }
    for gateway in [&interface.gateway, &interface.gateway6].into_iter().flatten() {
        let address: IpAddr =
            gateway.parse().map_err(|_| TaskError::new(ErrorCode::BadRequest, format!("{gateway:?} is no address")))?;
        let onlink = !networks.iter().any(|(own, prefix)| covers(*own, *prefix, address));
        socket
            .add_route(&Route { index, destination: None, gateway: Some(address), onlink })
            .doing(format_args!("route {name} through {gateway}"))?;
    }
    Ok(())
}

/// The metadata service is on the link, whatever the default route says.
fn route_to_metadata(socket: &RouteSocket, mmds: &Mmds) -> Result<(), TaskError> {
    let address: IpAddr = mmds
        .address
        .parse()
        .map_err(|_| TaskError::new(ErrorCode::BadRequest, format!("{:?} is no address", mmds.address)))?;
    let index = index_of(&mmds.interface)?;
    let prefix = if address.is_ipv4() { 32 } else { 128 };
    socket
        .add_route(&Route { index, destination: Some((address, prefix)), gateway: None, onlink: false })
        .doing(format_args!("route {address} to {}", mmds.interface))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs() {
        assert_eq!(parse_mac("b6:16:f2:3d:29:CF").unwrap(), [0xb6, 0x16, 0xf2, 0x3d, 0x29, 0xcf]);
        for bad in
            ["", "b6:16:f2:3d:29", "b6:16:f2:3d:29:cf:00", "b6:16:f2:3d:29:+f", "b616f23d29cf", "x6:16:f2:3d:29:cf"]
        {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }
}
