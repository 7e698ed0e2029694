//! An S3 server: moto's, from Python wheels, in a directory of our own.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::account;
use crate::install::{InstallError, cache_dir, python_with_pip};
use crate::port::Port;
use crate::process::{Process, output};
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
    packages: PathBuf,
    _scratch: Scratch,
}

impl Moto {
    /// Starts a server with one bucket.
    ///
    /// # Panics
    /// When moto is not installed: a test that cannot run has failed.
    #[track_caller]
    pub fn start(bucket: &str) -> Moto {
        let home = locate().filter(Home::is_complete);
        let home = home
            .unwrap_or_else(|| panic!("moto is missing: run `cargo run -p walrelay-testkit --bin setup`"));
        let (scratch, port) = (Scratch::new("moto"), Port::take());
        let mut command = account::lasting(&home.interpreter, "KILL");
        command.env("PYTHONPATH", &home.packages).env("PYTHONNOUSERSITE", "1");
        command.args(["-c", PROGRAM, "-H", "127.0.0.1", "-p", &port.number().to_string()]);
        let process = Process::spawn("moto", command, &scratch.join("log"));
        let moto = Moto { process, port, packages: home.packages, _scratch: scratch };
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
        &self.packages
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

/// Where moto is.
struct Home {
    interpreter: PathBuf,
    packages: PathBuf,
}

impl Home {
    fn is_complete(&self) -> bool {
        let installed = |(name, version): (&str, &str)| {
            self.packages.join(format!("{}-{version}.dist-info", name.replace('-', "_"))).is_dir()
        };
        PACKAGES.into_iter().all(installed)
    }
}

/// Finds moto, or installs it; tells where it is.
///
/// # Errors
/// When it is neither there nor can be installed; the message says what to do.
pub fn ensure() -> Result<PathBuf, InstallError> {
    let failed = |message| InstallError::Tool { name: "moto", message };
    let home = locate().ok_or_else(|| failed("no Python that the servers' account can run".to_owned()))?;
    if !home.is_complete() {
        install(&home).map_err(failed)?;
    }
    match home.is_complete() {
        true => Ok(home.packages),
        false => Err(failed("installed, but parts of it are missing".to_owned())),
    }
}

/// Version of moto.
pub fn version() -> &'static str {
    PACKAGES.iter().find(|(name, _)| *name == "moto").map_or("", |(_, version)| version)
}

/// The interpreter and where its packages belong: compiled ones fit one minor version only.
fn locate() -> Option<Home> {
    let version = |interpreter: &str| {
        let ask = "import sys; print('%d.%d' % sys.version_info[:2])";
        output(account::command(interpreter).args(["-c", ask])).ok()
    };
    ["/usr/bin/python3", "python3"].into_iter().find_map(|interpreter| {
        let packages = cache_dir().join(format!("moto-{}", version(interpreter)?.trim()));
        Some(Home { interpreter: interpreter.into(), packages })
    })
}

fn install(home: &Home) -> Result<(), String> {
    println!("installing moto {}", version());
    let aside = home.packages.with_file_name(format!("moto.new-{}", std::process::id()));
    let installed = install_into(home, &aside).and_then(|()| {
        let _ = fs::remove_dir_all(&home.packages);
        fs::rename(&aside, &home.packages).map_err(|error| format!("{}: {error}", aside.display()))
    });
    let _ = fs::remove_dir_all(&aside);
    installed
}

fn install_into(home: &Home, dir: &Path) -> Result<(), String> {
    let name = home.packages.file_name().unwrap_or_default().to_string_lossy();
    let mut pip = Command::new(python_with_pip()?);
    pip.args(["-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:", "--retries", "5"]);
    pip.args(["--implementation", "cp", "--python-version", name.trim_start_matches("moto-")]);
    pip.arg("--target").arg(dir);
    pip.args(PACKAGES.map(|(name, version)| format!("{name}=={version}")));
    output(&mut pip)?;
    output(Command::new("chmod").args(["-R", "a+rX"]).arg(dir)).map(drop)
}
