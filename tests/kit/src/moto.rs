//! An S3 server: moto's, from Python wheels, in a directory of our own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::install::InstallError;
use crate::packages::Packages;
use crate::port::Port;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait::within;

/// Distribution and version; all that its S3 needs, and nothing else.
const PACKAGES: [(&str, &str); 27] = [
    ("blinker", "1.9.0"),
    ("boto3", "1.44.5"),
    ("botocore", "1.44.5"),
    ("certifi", "2026.10.18"),
    ("cffi", "2.1.1"),
    ("charset-normalizer", "3.5.2"),
    ("click", "8.5.1"),
    ("cryptography", "50.0.2"),
    ("flask", "3.1.3"),
    ("flask-cors", "6.0.5"),
    ("idna", "3.20"),
    ("itsdangerous", "2.2.0"),
    ("jinja2", "3.1.6"),
    ("jmespath", "1.1.0"),
    ("markupsafe", "3.0.4"),
    ("moto", "5.2.5"),
    ("py-partiql-parser", "0.6.3"),
    ("pycparser", "3.12"),
    ("python-dateutil", "2.9.0.post0"),
    ("pyyaml", "6.0.3"),
    ("requests", "2.34.2"),
    ("responses", "0.26.3"),
    ("s3transfer", "0.19.3"),
    ("six", "1.17.0"),
    ("urllib3", "2.8.0"),
    ("werkzeug", "3.1.9"),
    ("xmltodict", "1.0.4"),
];

const PROGRAM: &str = "import sys\nfrom moto.server import main\nmain(sys.argv[1:])\n";

/// A running S3 server; killed when dropped, and everything in it is gone.
#[derive(Debug)]
pub struct Moto {
    process: Process,
    port: Port,
    packages: Packages,
    _scratch: Scratch,
}

impl Moto {
    /// Starts a server with one bucket.
    ///
    /// # Panics
    /// When moto is not installed: a test that cannot run has failed.
    #[track_caller]
    pub fn start(bucket: &str) -> Moto {
        let packages = locate().filter(Packages::are_complete);
        let packages = packages
            .unwrap_or_else(|| panic!("moto is missing: run `cargo run -p walrelay-testkit --bin setup`"));
        let (scratch, port) = (Scratch::new("moto"), Port::take());
        let mut command = packages.interpreter();
        command.args(["-c", PROGRAM, "-H", "127.0.0.1", "-p", &port.number().to_string()]);
        let process = Process::spawn("moto", command, &scratch.join("log"));
        let moto = Moto { process, port, packages, _scratch: scratch };
        let ready = within(crate::PATIENCE, || moto.request("PUT", bucket).filter(|code| *code == 200));
        assert!(ready.is_some(), "moto does not answer\n{}", moto.process.log().tail());
        moto
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number())
    }

    /// Directory of its Python packages, boto3 among them.
    pub fn packages(&self) -> &Path {
        self.packages.dir()
    }

    /// Lines of a `[archive.NAME]` table that lead to it.
    pub fn options(&self) -> String {
        format!(
            "endpoint = \"{}\"\nregion = \"us-east-1\"\noptions = {{ access-key-id = \"test\", secret-access-key = \"test\" }}\n",
            self.endpoint()
        )
    }

    /// It answers nobody until [`Moto::go_on`].
    pub fn hold(&mut self) {
        self.process.signal(Signal::STOP);
    }

    /// The end of [`Moto::hold`].
    pub fn go_on(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// The status of a request without a body, if it answers.
    fn request(&self, method: &str, path: &str) -> Option<u32> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port.number())).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let text = format!(
            "{method} /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(text.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split(' ').nth(1)?.parse().ok()
    }
}

/// Finds moto, or installs it; tells where it is.
///
/// # Errors
/// When it is neither there nor can be installed; the message says what to do.
pub fn ensure() -> Result<PathBuf, InstallError> {
    let failed = |message| InstallError::Tool { name: "moto", message };
    let packages =
        locate().ok_or_else(|| failed("no Python that the servers' account can run".to_owned()))?;
    if !packages.are_complete() {
        println!("installing moto {}", version());
        packages.ensure().map_err(failed)?;
    }
    Ok(packages.dir().to_owned())
}

/// Version of moto.
pub fn version() -> &'static str {
    PACKAGES.iter().find(|(name, _)| *name == "moto").map_or("", |(_, version)| version)
}

fn locate() -> Option<Packages> {
    Packages::locate("moto", &PACKAGES)
}
