//! Everything that touches packets, maps and the kernel's helpers.

pub(crate) mod answer;
pub(crate) mod egress;
pub(crate) mod established;
pub(crate) mod event;
pub(crate) mod family;
pub(crate) mod flow;
pub(crate) mod forward;
pub(crate) mod hop;
pub(crate) mod icmp;
pub(crate) mod local;
pub(crate) mod maps;
pub(crate) mod packet;
pub(crate) mod parsed;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod table;
pub(crate) mod xdp;

use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::programs::{TcContext, XdpContext};
use egress_ebpf::contract::{Config, Counter, Direction, Mark, Shape};
use egress_ebpf::verdict::{DropReason, Hook, Verdict, drop_index, verdict_index};

use established::Frame as _;
use family::{V4, V6};
use maps::Work;
use packet::Packet;
use request::ether_type;
use xdp::XdpFrame;

/// Size of a helper's argument, as helpers take it.
pub(crate) const fn size<T>() -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "no argument of a helper is that large")]
    let size = size_of::<T>() as u32;
    size
}

/// What a program decides.
pub(crate) type Outcome = Result<Verdict, DropReason>;

/// What every program needs beside its packet.
pub(crate) struct Scene {
    /// The generation in force.
    pub(crate) generation: u8,
    /// Its settings.
    pub(crate) config: &'static Config,
    /// How the flow table is made.
    pub(crate) shape: &'static Shape,
    /// Monotonic clock.
    pub(crate) now_ns: u64,
    work: *mut Work,
}

impl Scene {
    /// This CPU's work space. Fetched anew after every call of another BPF function, which writes there too; so no two
    /// references to it are in use at a time.
    #[inline(always)]
    pub(crate) fn work(&self) -> &'static mut Work {
        // SAFETY: the pointer came from the map and is not null; the element belongs to this CPU, where a program is not
        // preempted by another.
        unsafe { &mut *self.work }
    }
}

/// Runs `program` and turns its outcome into an action, counted. A packet that the datapath passes goes on to the next
/// program of the hook, if there is one.
#[inline(always)]
pub(crate) fn run(ctx: TcContext, hook: Hook, program: fn(&mut Packet, &Scene) -> Outcome) -> i32 {
    let len = u64::from(ctx.len());
    #[cfg(feature = "other-build")]
    let len = core::hint::black_box(len);
    let mut packet = Packet::new(ctx);
    if hook.is_egress() && packet.mark() == Mark::DONE {
        // Translated at ingress, whole: nothing is left to do. (Who may set this mark may also take the programs away.)
        packet.clear_mark();
        count(verdict_index(hook, Verdict::Redirected), len);
        return TC_ACT_UNSPEC;
    }
    let outcome = match scene() {
        Some(scene) => program(&mut packet, &scene),
        None => Err(DropReason::Unconfigured),
    };
    match outcome {
        Ok(verdict) => {
            count(verdict_index(hook, verdict), len);
            match verdict {
                Verdict::RequestRedirected | Verdict::ReplyRedirected | Verdict::Accelerated => TC_ACT_REDIRECT,
                Verdict::Pass
                | Verdict::Local
                | Verdict::Rejected
                | Verdict::Request
                | Verdict::Reply
                | Verdict::SourceHalf
                | Verdict::Redirected
                | Verdict::KernelError => TC_ACT_UNSPEC,
            }
        }
        Err(reason) => {
            count(drop_index(hook, reason), len);
            event::dropped(&packet, hook, reason);
            TC_ACT_SHOT
        }
    }
}

/// Runs the short way alone, in an XDP program: what it does not take goes on to the tc program of `hook`, as it came.
#[inline(always)]
pub(crate) fn accelerate(ctx: XdpContext, hook: Hook, direction: Direction) -> xdp_action::Type {
    let mut frame = XdpFrame::new(ctx);
    let len = u64::from(frame.len());
    let forwarded = scene().and_then(|scene| match frame.ether_type()? {
        ether_type::IPV4 => established::forward::<V4, _>(&mut frame, &scene, direction),
        ether_type::IPV6 => established::forward::<V6, _>(&mut frame, &scene, direction),
        _ => None,
    });
    match forwarded {
        None => xdp_action::XDP_PASS,
        Some(Ok(verdict)) => {
            count(verdict_index(hook, verdict), len);
            xdp_action::XDP_REDIRECT
        }
        Some(Err(reason)) => {
            count(drop_index(hook, reason), len);
            xdp_action::XDP_DROP
        }
    }
}

#[inline(always)]
fn scene() -> Option<Scene> {
    let generation = *maps::ACTIVE.get(0)? & 1;
    let config = maps::CONFIG.get(generation)?;
    if config.cluster_ifindex == 0 {
        return None;
    }
    let shape = table::shape()?;
    let work = maps::WORK.get_ptr_mut(0)?;
    // SAFETY: as in `Scene::work`.
    let now_ns = now_ns(unsafe { &mut *work });
    Some(Scene { generation: u8::from(generation != 0), config, shape, now_ns, work })
}

/// The clock, to the tick: nothing here needs more than a second's tenth. It is read once a tick; which tick it is costs no call.
#[inline(always)]
fn now_ns(work: &mut Work) -> u64 {
    // SAFETY: the helper takes nothing and reads a number.
    let tick = unsafe { bpf_jiffies64() };
    if work.tick != tick {
        work.tick = tick;
        // SAFETY: the helper takes nothing and reads the clock.
        work.now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    }
    work.now_ns
}

/// This CPU's work space, for functions that need nothing of [`Scene`].
#[inline(always)]
fn work() -> Option<&'static mut Work> {
    let work = maps::WORK.get_ptr_mut(0)?;
    // SAFETY: as in `Scene::work`.
    Some(unsafe { &mut *work })
}

#[inline(always)]
fn count(index: u32, len: u64) {
    if let Some(counter) = maps::COUNTERS.get_ptr_mut(index) {
        // SAFETY: the element belongs to this CPU, and a program is not preempted by another on its CPU.
        let counter: &mut Counter = unsafe { &mut *counter };
        counter.packets += 1;
        counter.bytes += len;
    }
}
