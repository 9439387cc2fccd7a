//! Entering namespaces.

use super::lab::*;
use crate::link::{LinkError, Netns, NetnsRef};

#[test]
fn work_runs_inside_and_the_caller_stays_outside() {
    let namespace = Namespace::new("n");
    let own = NetnsRef::Own.open().unwrap();
    let before = own.cookie().unwrap();
    let inside = namespace.netns.run(|| NetnsRef::Own.open().unwrap().cookie().unwrap()).unwrap();
    assert_eq!(inside, namespace.netns.cookie().unwrap());
    assert_ne!(inside, before);
    assert_eq!(NetnsRef::Own.open().unwrap().cookie().unwrap(), before);
}

#[test]
fn every_way_to_name_a_namespace() {
    let namespace = Namespace::new("n");
    let path = format!("/run/netns/{}", namespace.name);
    for named in [path.parse(), namespace.name.parse()] {
        let named: NetnsRef = named.unwrap();
        assert!(named.open().unwrap().is(&namespace.netns).unwrap(), "{named}");
    }
    assert!(NetnsRef::Pid(std::process::id()).open().unwrap().is(&NetnsRef::Own.open().unwrap()).unwrap());
    // Not everybody may look at process 1.
    match Netns::host() {
        Ok(host) => assert!(!host.is(&namespace.netns).unwrap()),
        Err(error) => assert_eq!(error.to_string(), "open network namespace host (/proc/1/ns/net)"),
    }
}

#[test]
fn a_namespace_that_does_not_exist_is_named() {
    let error = NetnsRef::Name("nowhere".to_owned()).open().unwrap_err();
    assert!(matches!(&error, LinkError::OpenNetns { netns, .. } if netns == "nowhere"), "{error:?}");
    assert_eq!(error.to_string(), "open network namespace nowhere (/run/netns/nowhere)");
}

#[test]
fn a_file_that_is_no_namespace_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let netns = NetnsRef::Path(file.path().to_owned()).open().unwrap();
    let error = netns.run(|| ()).unwrap_err();
    assert!(matches!(error, LinkError::EnterNetns { .. }), "{error:?}");
}

#[test]
fn a_panic_inside_is_the_callers() {
    let namespace = Namespace::new("n");
    let caught = std::panic::catch_unwind(|| namespace.netns.run(|| panic!("inside")));
    assert!(caught.is_err());
}
