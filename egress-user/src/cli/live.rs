//! `trace --live`: what becomes of packets, as they pass.

use std::time::Duration;

use anyhow::Context as _;
use egress_ebpf::addr::{Addr, Port};
use egress_ebpf::event::Filter;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{interval, sleep};

use super::args;
use super::output::{self, Format};
use crate::agent::{TO_READ, check_privilege};
use crate::datapath::{Events, Traced, Tracer, Watched, number_of_protocol};

/// Prints packets until a signal, the end of the time, or until nobody reads.
pub(super) fn run(args: &args::Trace) -> anyhow::Result<()> {
    let filter = filter(args)?;
    check_privilege(TO_READ)?;
    let (tracer, events) = Tracer::start(&super::commands::pins(&args.target)?, filter)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("set up the runtime")?;
    runtime.block_on(follow(args, tracer, events))
}

fn filter(args: &args::Trace) -> anyhow::Result<Filter> {
    let addr = args.from.map_or(Addr::UNSPECIFIED, |from| from.ip().into());
    let (protocol, of_packet) = match &args.packet {
        Some(packet) => (number_of_protocol(&packet.protocol).context("a protocol that has no number")?, packet.port),
        None => (0, None),
    };
    let of_client = args.from.map(|from| from.port()).filter(|port| *port != 0);
    if of_packet.is_some() && of_client.is_some() {
        anyhow::bail!("a live trace filters by one port: that of the packet or that of --from");
    }
    let port = of_packet.or(of_client).map_or(Port::NONE, Port::new);
    Ok(Filter { until_ns: 0, addr, rate: args.rate, port, protocol, pad: 0 })
}

async fn follow(args: &args::Trace, mut tracer: Tracer, events: Events) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut events = events.watched().context("wait for packets")?;
    let mut hold = interval(Tracer::EVERY);
    let end = async {
        match args.during {
            Some(seconds) => sleep(Duration::from_secs(seconds.into())).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = events.ready() => print(args, &mut events)?,
            _ = hold.tick() => {
                if !output::is_read() {
                    break;
                }
                tracer.hold()?;
            }
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = &mut end => break,
        }
    }
    print(args, &mut events)?;
    let untold = tracer.untold(events.events())?;
    if untold > 0 {
        tracing::warn!("{untold} more packets passed than --rate {} lets be shown", args.rate);
    }
    Ok(())
}

fn print(args: &args::Trace, events: &mut Watched) -> anyhow::Result<()> {
    while let Some(event) = events.events().take() {
        let Some(packet) = Traced::of(&event) else { continue };
        match args.output.format {
            Format::Table => output::text(&sentence(&packet))?,
            // One packet a line, or a document: whoever reads does not wait for the end.
            Format::Json => output::text(&format!("{}\n", serde_json::to_string(&packet)?))?,
            Format::Yaml => {
                output::text("---\n")?;
                output::value(&packet, Format::Yaml)?;
            }
        }
    }
    Ok(())
}

fn sentence(packet: &Traced) -> String {
    let Traced { time, program, protocol, from, to, verdict, because, .. } = packet;
    let mut text = format!("{time:.3} {program} {protocol} {from} > {to}: {verdict}, {because}");
    if let (Some(source), Some(destination)) = (packet.source, packet.destination) {
        text.push_str(&format!("; leaves as {source} to {destination}"));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn parsed(line: &str) -> args::Trace {
        match args::Cli::try_parse_from(line.split(' ')).unwrap().command {
            args::Command::Trace(trace) => trace,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_filter_has_one_port() {
        let of = |line: &str| filter(&parsed(line)).map(|filter| (filter.protocol, filter.port.get()));
        assert_eq!(of("x trace --live").unwrap(), (0, 0));
        assert_eq!(of("x trace --live tcp/80").unwrap(), (6, 80));
        assert_eq!(of("x trace --live 47 --from 10.0.0.1").unwrap(), (47, 0));
        assert_eq!(of("x trace --live icmpv6 --from [fd00::1]:7").unwrap(), (58, 7));
        assert!(of("x trace --live tcp/80 --from 10.0.0.1:7").is_err());
    }
}
