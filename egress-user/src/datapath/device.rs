//! What a network device can do for XDP programs.
//!
//! As [`attach`](super::attach), this runs on a thread inside the router's namespace.

use std::error::Error;
use std::io;
use std::iter::once;

use futures_util::TryStreamExt as _;
use neli::consts::genl::{Cmd, NlAttrType};
use neli::consts::nl::NlmF;
use neli::consts::socket::NlFamily;
use neli::genl::{AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, NlattrBuilder, NoUserHeader};
use neli::neli_enum;
use neli::nl::{NlPayload, Nlmsghdr};
use neli::router::synchronous::NlRouter;
use neli::types::GenlBuffer;
use neli::utils::Groups;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkXdp};
use nix::net::if_::if_nametoindex;

use crate::netlink::ask;

/// A network device, as far as XDP is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    index: u32,
    /// The kernel's name of its kind, as `veth`; none of hardware.
    pub(super) kind: Option<String>,
    /// Ids of the XDP programs on it.
    pub(super) programs: Vec<u32>,
}

/// What a device's driver can do: `NETDEV_A_DEV_XDP_FEATURES`; nothing on kernels before 6.3, which do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features(pub(super) u64);

impl Features {
    /// `NETDEV_XDP_ACT_BASIC` and `NETDEV_XDP_ACT_REDIRECT`.
    const TAKES: u64 = 1 | 1 << 1;
    /// `NETDEV_XDP_ACT_NDO_XMIT`.
    const SENDS: u64 = 1 << 2;

    /// Whether native programs run on what it receives, and may redirect it.
    pub(super) const fn takes_programs(self) -> bool {
        self.0 & Self::TAKES == Self::TAKES
    }

    /// Whether it sends what programs of other devices redirect to it.
    pub(super) const fn sends_redirected(self) -> bool {
        self.0 & Self::SENDS != 0
    }
}

impl Device {
    /// The device of this name; none if there is none.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn find(name: &str) -> io::Result<Option<Self>> {
        let Ok(index) = if_nametoindex(name) else { return Ok(None) };
        let link = ask(async |handle| handle.link().get().match_index(index).execute().try_next().await)?;
        let Some(link) = link else { return Ok(None) };
        let (mut kind, mut programs) = (None, Vec::new());
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::LinkInfo(infos) => kind = infos.iter().find_map(kind_of),
                LinkAttribute::Xdp(states) => programs.extend(states.iter().filter_map(program_of)),
                _ => {}
            }
        }
        programs.sort_unstable();
        programs.dedup();
        Ok(Some(Self { index, kind, programs }))
    }

    /// What its driver can do.
    pub(super) fn features(&self) -> Features {
        // A kernel without the family takes no question about it.
        Features(features(self.index).unwrap_or(0))
    }
}

fn kind_of(info: &LinkInfo) -> Option<String> {
    match info {
        LinkInfo::Kind(InfoKind::Other(kind)) => Some(kind.clone()),
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

fn program_of(state: &LinkXdp) -> Option<u32> {
    match state {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => Some(*id),
        _ => None,
    }
}

/// Requests of the `netdev` family.
#[neli_enum(serialized_type = "u8")]
enum Request {
    DevGet = 1,
}

impl Cmd for Request {}

/// Attributes of a device.
#[neli_enum(serialized_type = "u16")]
enum DeviceAttribute {
    IfIndex = 1,
    XdpFeatures = 3,
}

impl NlAttrType for DeviceAttribute {}

fn features(index: u32) -> Result<u64, Box<dyn Error>> {
    let (router, _groups) = NlRouter::connect(NlFamily::Generic, None, Groups::empty())?;
    let family = router.resolve_genl_family("netdev")?;
    let which = NlattrBuilder::default()
        .nla_type(AttrTypeBuilder::default().nla_type(DeviceAttribute::IfIndex).build()?)
        .nla_payload(index)
        .build()?;
    let request = GenlmsghdrBuilder::<Request, DeviceAttribute, NoUserHeader>::default()
        .cmd(Request::DevGet)
        .version(1)
        .attrs(once(which).collect::<GenlBuffer<_, _>>())
        .build()?;
    let answers = router.send::<_, _, u16, Genlmsghdr<Request, DeviceAttribute>>(
        family,
        NlmF::REQUEST,
        NlPayload::Payload(request),
    )?;
    for answer in answers {
        let answer: Nlmsghdr<u16, Genlmsghdr<Request, DeviceAttribute>> = answer?;
        if let Some(device) = answer.get_payload() {
            return Ok(device.attrs().get_attr_handle().get_attr_payload_as::<u64>(DeviceAttribute::XdpFeatures)?);
        }
    }
    Err("no answer".into())
}
