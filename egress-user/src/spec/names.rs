//! Rules for names.

use super::host::Fault;

/// `metadata.name`: a DNS subdomain (RFC 1123), as the API server wants it.
pub(super) fn object(name: &str) -> Result<(), Fault> {
    let labels = name.split('.').all(|part| !part.is_empty() && is_label(part));
    if labels && name.len() <= 253 {
        return Ok(());
    }
    let help = "use at most 253 of a-z, 0-9, - and ., with a letter or digit at each end and beside each dot";
    Err(Fault::new("is not a name that Kubernetes takes", help))
}

/// `metadata.namespace`: a DNS label (RFC 1123).
pub(super) fn namespace(name: &str) -> Result<(), Fault> {
    if !name.is_empty() && name.len() <= 63 && is_label(name) {
        return Ok(());
    }
    let help = "use at most 63 of a-z, 0-9 and -, with a letter or digit at each end";
    Err(Fault::new("is not a namespace that Kubernetes takes", help))
}

fn is_label(text: &str) -> bool {
    text.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-')) && !text.starts_with('-') && !text.ends_with('-')
}

/// Name of a network interface: what the kernel's `dev_valid_name` takes.
pub(super) fn interface(name: &str) -> Result<(), Fault> {
    /// `IFNAMSIZ` less the terminating zero.
    const LONGEST: usize = 15;
    let what = "cannot be the name of a network interface";
    if name.is_empty() {
        return Err(Fault::new(what, "write a name, or leave it out"));
    }
    if name.len() > LONGEST {
        return Err(Fault::new(what, format!("a name has at most {LONGEST} bytes, this one has {}", name.len())));
    }
    let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
    if name == "." || name == ".." || name.contains(odd) {
        return Err(Fault::new(
            what,
            "a name is not . or .. and has no /, : or blank; `ip link` lists those there are",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_names() {
        for good in ["a", "egress-router-redirect", "a.b-c.9", &"a".repeat(253)] {
            assert_eq!(object(good), Ok(()), "{good:?}");
        }
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a.", "a.-b", "a b", "ä", &"a".repeat(254)] {
            assert!(object(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn namespaces() {
        for good in ["default", "a-1", &"a".repeat(63)] {
            assert_eq!(namespace(good), Ok(()), "{good:?}");
        }
        for bad in ["", "a.b", "Default", "-", &"a".repeat(64)] {
            assert!(namespace(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn interfaces() {
        for good in ["eth0", "br-ex", "enp3s0f0np0.100", "x", "ü", "..."] {
            assert_eq!(interface(good), Ok(()), "{good:?}");
        }
        for bad in ["", ".", "..", "a/b", "a:1", "a b", "a\tb", "enp3s0f0np0.1000", "a\u{a0}b"] {
            assert!(interface(bad).is_err(), "{bad:?}");
        }
    }
}
