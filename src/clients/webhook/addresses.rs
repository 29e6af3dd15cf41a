//! Addresses that must not be called from a server: whoever sets a webhook's address could otherwise reach
//! what only this machine reaches, such as the platform's metadata. A name is looked up first, and only
//! addresses that may be called are connected to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// The address that stands in a URL in place of a name.
pub(super) fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        url::Host::Ipv4(address) => Some(address.into()),
        url::Host::Ipv6(address) => Some(address.into()),
        url::Host::Domain(_) => None,
    }
}

/// An address must not be called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a public address: name it in allow_addresses to call it")]
pub(super) struct Forbidden(IpAddr);

/// Whether an address may be called.
///
/// # Errors
/// Why it may not, and how to allow it.
pub(super) fn may_call(address: IpAddr, allowed: &[IpNet]) -> Result<(), Forbidden> {
    // An IPv4 address in IPv6 clothes leads to the same place.
    let address = address.to_canonical();
    if is_public(address) || allowed.iter().any(|network| network.contains(&address)) {
        return Ok(());
    }
    Err(Forbidden(address))
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    let shared = first == 100 && (64..128).contains(&second);
    let special = first == 0 || first >= 240 || (first == 192 && address.octets()[1..3] == [0, 0]);
    let benchmarks = first == 198 && (18..20).contains(&second);
    !(address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || shared
        || special
        || benchmarks)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    // Global unicast, without documentation and what carries an IPv4 address to a translator or relay.
    let [first, second, ..] = address.segments();
    let documentation = first == 0x2001 && second == 0x0db8;
    let relayed = first == 0x2002 || (first == 0x2001 && second == 0);
    (first & 0xe000) == 0x2000 && !documentation && !relayed
}

/// Looks names up, and leaves out what must not be called.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    allowed: Vec<IpNet>,
}

impl Guard {
    pub(super) fn new(allowed: Vec<IpNet>) -> Self {
        Self { allowed }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let allowed = self.allowed.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut refused = None;
            let mut addresses: Vec<SocketAddr> = Vec::new();
            for found in found {
                match may_call(found.ip(), &allowed) {
                    Ok(()) => addresses.push(found),
                    Err(why) => refused = Some(why),
                }
            }
            match (addresses.is_empty(), refused) {
                (true, Some(why)) => Err(why.into()),
                _ => Ok(Box::new(addresses.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_may_be_called_in_whatever_clothes() {
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:169.254.169.254",
            "::ffff:10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
        ] {
            let address: IpAddr = address.parse().expect(address);
            let why = may_call(address, &[]).expect_err("not public").to_string();
            assert!(why.contains("allow_addresses"), "{why}");
        }
        for address in ["93.184.216.34", "2606:2800:220:1::1", "172.32.0.1", "100.128.0.1"] {
            let address: IpAddr = address.parse().expect(address);
            assert_eq!(may_call(address, &[]), Ok(()), "{address}");
        }
    }

    #[test]
    fn what_is_allowed_may_be_called_and_nothing_else() {
        let allowed: Vec<IpNet> = vec!["10.0.0.0/8".parse().expect("a network")];
        let may = |address: &str| may_call(address.parse().expect(address), &allowed).is_ok();
        assert!(may("10.1.2.3") && may("::ffff:10.1.2.3"));
        assert!(!may("192.168.1.1") && !may("127.0.0.1"));
    }

    #[tokio::test]
    async fn a_name_that_leads_to_this_machine_is_not_followed() {
        let resolve = |allowed| Guard::new(allowed).resolve("localhost".parse().expect("a name"));
        let error = resolve(Vec::new()).await.err().expect("refused").to_string();
        assert!(error.contains("not a public address"), "{error}");
        let loopback = ["127.0.0.0/8", "::1/128"].map(|text| text.parse().expect("a network"));
        assert!(resolve(loopback.to_vec()).await.is_ok_and(|mut all| all.next().is_some()));
    }
}
