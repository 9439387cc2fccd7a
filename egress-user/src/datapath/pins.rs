//! Where the datapath of a namespace is pinned.

use std::io;
use std::path::{Path, PathBuf};

use egress_ebpf::contract::LAYOUT;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::DatapathError;

/// `<bpffs>/<cookie>/v<layout>`: pins of one router's datapath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDir {
    root: PathBuf,
    router: PathBuf,
    path: PathBuf,
}

impl PinDir {
    /// Pins of the namespace with this cookie, under `root`, which has to be (in) a BPF file system.
    pub fn new(root: &Path, netns_cookie: u64) -> Self {
        let router = root.join(netns_cookie.to_string());
        let path = router.join(format!("v{LAYOUT}"));
        Self { root: root.to_path_buf(), router, path }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Pin of a hook's link.
    pub fn link(&self, program: &str) -> PathBuf {
        self.path.join(format!("link_{program}"))
    }

    /// Pins of the same router that another version of this program left, with another layout.
    pub fn others(&self) -> Vec<Self> {
        let entries = std::fs::read_dir(&self.router).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path()).filter(|path| *path != self.path && path.is_dir());
        paths.map(|path| Self { path, ..self.clone() }).collect()
    }

    /// Whether anything is pinned here.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Mounts a BPF file system for the directory where there is none.
    ///
    /// # Errors
    ///
    /// When it is not in a BPF file system and none can be mounted.
    pub fn mount(&self) -> Result<(), DatapathError> {
        if !is_bpffs(existing_ancestor(&self.root)) {
            let at = self.mount_point();
            std::fs::create_dir_all(at).map_err(pin_error("create directory", at))?;
            let none: Option<&str> = None;
            mount(Some("bpf"), at, Some("bpf"), MsFlags::empty(), none)
                .map_err(io::Error::from)
                .map_err(pin_error("mount a BPF file system at", at))?;
            tracing::info!(path = %at.display(), "mounted a BPF file system");
        }
        Ok(())
    }

    /// Makes the directory, after [`mount`](Self::mount).
    ///
    /// # Errors
    ///
    /// As there, and when the directory cannot be made.
    pub fn create(&self) -> Result<(), DatapathError> {
        self.mount()?;
        std::fs::create_dir_all(&self.path).map_err(pin_error("create directory", &self.path))
    }

    /// The customary place if the directory is below it, else the directory itself.
    fn mount_point(&self) -> &Path {
        let customary = Path::new("/sys/fs/bpf");
        if self.root.starts_with(customary) { customary } else { &self.root }
    }

    /// Unpins everything, and removes the directories that are then empty. Unpinning a link detaches its program.
    /// Returns whether there was anything.
    ///
    /// # Errors
    ///
    /// All of them: a failure does not keep the rest from being removed.
    pub fn remove(&self) -> Result<bool, Vec<DatapathError>> {
        let entries = match std::fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => {
                return Err(vec![DatapathError::Pin {
                    action: "read directory",
                    path: self.path.clone(),
                    source: source.into(),
                }]);
            }
        };
        let mut errors = Vec::new();
        let mut gone = |action, path: &Path, result: io::Result<()>| match result {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                errors.push(DatapathError::Pin { action, path: path.to_path_buf(), source: source.into() });
            }
            _ => {}
        };
        for entry in entries.flatten() {
            gone("unpin", &entry.path(), std::fs::remove_file(entry.path()));
        }
        gone("remove directory", &self.path, std::fs::remove_dir(&self.path));
        // Another layout's pins, of another version of this program, or other routers' may still be there.
        let _ = std::fs::remove_dir(&self.router);
        let _ = std::fs::remove_dir(&self.root);
        if errors.is_empty() { Ok(true) } else { Err(errors) }
    }
}

fn pin_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DatapathError {
    let path = path.to_path_buf();
    move |source| DatapathError::Pin { action, path, source: source.into() }
}

fn existing_ancestor(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}
