//! A file system whose server does not answer: whoever asks it can't even be killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::Host;
use crate::command;

/// A server of FUSE that takes each question, tells by a file that there was one, and answers none but the first, which is the
/// kernel's own. A question that was taken has to be answered before who asked it dies.
const SERVER: &str = "import ctypes, os, struct, sys
fuse = os.open('/dev/fuse', os.O_RDWR)
options = f'fd={fuse},rootmode=40000,user_id=0,group_id=0'.encode()
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b'silent', sys.argv[1].encode(), b'fuse', 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
unique = struct.unpack_from('=IIQ', os.read(fuse, 1 << 20))[2]
answer = struct.pack('=IIIIHHII', 7, 31, 0, 0, 0, 0, 1 << 16, 0).ljust(64, b'\\0')
os.write(fuse, struct.pack('=IiQ', 16 + len(answer), 0, unique) + answer)
while True:
    os.read(fuse, 1 << 20)
    open(sys.argv[2], 'w').close()";

/// The file system, which goes with this; who waits for it can go on then.
#[derive(Debug)]
pub struct Silent {
    server: Child,
    at: PathBuf,
    asked: PathBuf,
}

impl Silent {
    /// Mounts it in a directory of the test; `None`, and a skipped test, where that can't be done.
    ///
    /// # Panics
    /// When the server can't be started.
    pub fn mount(host: &Host) -> Option<Self> {
        if !host.needs_program("python3") {
            return None;
        }
        if !Path::new("/dev/fuse").exists() {
            host.skip("there is no /dev/fuse");
            return None;
        }
        let (at, asked) = (host.directory(), host.directory().join("asked"));
        let mut server = Command::new("python3");
        server.args(["-c", SERVER]).args([&at, &asked]).stdin(Stdio::null());
        let server = server.spawn().expect("start a server of FUSE");
        let table = || fs::read_to_string("/proc/self/mountinfo").expect("read the mount table");
        let point = at.display().to_string();
        command::eventually("it is mounted", || table().contains(&point));
        Some(Self { server, at, asked })
    }

    /// A path in it.
    pub fn path(&self) -> PathBuf {
        self.at.join("data")
    }

    /// Whether somebody has asked for something.
    pub fn is_asked(&self) -> bool {
        self.asked.exists()
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}
