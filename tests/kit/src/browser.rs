//! A browser without a window: Chromium, told what to do through two pipes (the DevTools protocol).

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Value, json};

use crate::account::tied_command;
use crate::install::{InstallError, apt_install};
use crate::process::Process;
use crate::scratch::Scratch;
use crate::tools;
use crate::wait::{PATIENCE, wait_until};

/// Names under which distributions have it; the first one has no window at all and is smaller.
const NAMES: [&str; 5] =
    ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];
/// Packages that have it, the smaller one first.
const PACKAGES: [&str; 2] = ["chromium-headless-shell", "chromium"];

/// One page, and the browser that shows it. Ends with this value.
#[derive(Debug)]
pub struct Browser {
    said: Receiver<Value>,
    orders: File,
    session: Option<String>,
    number: u64,
    /// What it reports by itself: errors of scripts, and what the page's policy has refused.
    complaints: Vec<String>,
    process: Process,
    _scratch: Scratch,
}

/// Where it is: `WALRELAY_CHROMIUM`, or on the path; where it cannot be had, its stories say so and do nothing.
pub fn find() -> Option<PathBuf> {
    let given = std::env::var_os("WALRELAY_CHROMIUM").map(PathBuf::from);
    given.or_else(|| NAMES.iter().find_map(|name| tools::path(name)))
}

/// Finds it, or installs it; tells where it is.
///
/// # Errors
/// When it is neither there nor can be installed; the message says what to do.
pub fn ensure() -> Result<String, InstallError> {
    let failed = |message| InstallError::Tool { name: "Chromium", message };
    if find().is_none() {
        if !rustix::process::getuid().is_root() {
            let why = "it is needed, and installing packages takes root";
            return Err(failed(format!("{why}: install Debian's {}, or set WALRELAY_CHROMIUM", PACKAGES[0])));
        }
        apt_install(PACKAGES[0]).or_else(|_| apt_install(PACKAGES[1])).map_err(failed)?;
    }
    let found = find().ok_or_else(|| failed("installed, but the program is missing".to_owned()))?;
    Ok(found.display().to_string())
}

impl Browser {
    /// Starts it with an empty page.
    ///
    /// # Panics
    /// It does not do what it is told.
    #[track_caller]
    pub fn start(program: &Path) -> Browser {
        Browser::start_with(program, &[])
    }

    /// The same with these options of its own.
    ///
    /// # Panics
    /// As [`Browser::start`].
    #[track_caller]
    pub fn start_with(program: &Path, options: &[&str]) -> Browser {
        let scratch = Scratch::new("browser");
        let [orders, answers] = ["orders", "answers"].map(|name| scratch.join(name));
        for pipe in [&orders, &answers] {
            mkfifoat(CWD, pipe, Mode::RUSR | Mode::WUSR).expect("the directory is ours");
        }
        // It wants the pipes under these numbers.
        let script = "orders=$1 answers=$2; shift 2; exec \"$@\" 3<\"$orders\" 4>\"$answers\"";
        let mut command = tied_command("sh");
        command.args(["-c", script, "sh"]).args([&orders, &answers]).arg(program);
        // As root it has no sandbox, and in a container little shared memory.
        command.args(["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-dev-shm-usage"]);
        command.args(["--disable-gpu", "--no-first-run", "--hide-scrollbars"]);
        command.args(options);
        // As root it makes the home that others count on not to be there.
        command.env("HOME", scratch.join("home"));
        // It asks nobody but the relay.
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.arg(format!("--user-data-dir={}", scratch.join("profile").display()));
        let process = Process::spawn("chromium", command, &scratch.join("log"));
        let orders = File::options().read(true).write(true).open(&orders).expect("the shell opens it, too");
        let answers = BufReader::new(File::open(&answers).expect("the shell opens it, too"));
        let (sender, said) = channel();
        std::thread::spawn(move || {
            for message in answers.split(0) {
                let Ok(Ok(message)) = message.map(|text| serde_json::from_slice(&text)) else { return };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let complaints = Vec::new();
        let mut browser =
            Browser { said, orders, session: None, number: 0, complaints, process, _scratch: scratch };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Size of the window in its own pixels, and how many of the screen's each has.
    pub fn set_window(&mut self, width: u32, height: u32, scale: f64) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// `light` or `dark`.
    pub fn prefer(&mut self, colours: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": colours });
        self.call("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
    }

    /// Goes there, and waits until all of it has come.
    #[track_caller]
    pub fn open(&mut self, url: &str) {
        let gone = self.call("Page.navigate", json!({ "url": url }));
        assert!(gone.get("errorText").is_none(), "{url}: {gone}");
        let here = "document.readyState === 'complete' && location.href !== 'about:blank'";
        wait_until(url, || self.ask(here) == Value::Bool(true));
    }

    /// The value of an expression, in the page.
    #[track_caller]
    pub fn ask(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", asked);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// The same as a text.
    #[track_caller]
    pub fn text(&mut self, expression: &str) -> String {
        self.ask(expression).as_str().unwrap_or_default().to_owned()
    }

    /// What the page looks like from its top down to the window's height: a PNG, in base64.
    pub fn picture(&mut self) -> String {
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        picture["data"].as_str().unwrap_or_default().to_owned()
    }

    /// A key is pressed, by its name: `Tab`, `ArrowLeft`, `Enter`.
    pub fn press(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "ArrowLeft" => 37,
            _ => 0,
        };
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let event =
                json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Errors of the page's scripts, and what its policy has refused, so far.
    pub fn complaints(&mut self) -> &[String] {
        // What was said before this answer has come.
        self.ask("1");
        &self.complaints
    }

    #[track_caller]
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let mut order = json!({ "id": self.number, "method": method, "params": params });
        if let Some(session) = &self.session {
            order["sessionId"] = session.as_str().into();
        }
        let sent = self.orders.write_all(format!("{order}\0").as_bytes());
        let log = self.process.log().tail();
        sent.unwrap_or_else(|error| panic!("chromium takes no orders: {error}\n{log}"));
        let begun = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let message = self.said.recv_timeout(left);
            let message = message.unwrap_or_else(|error| panic!("no answer to {method}: {error}\n{log}"));
            if message["id"] == self.number {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].clone();
            }
            self.note(&message);
        }
    }

    fn note(&mut self, message: &Value) {
        let params = &message["params"];
        match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push(params["exceptionDetails"].to_string()),
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                self.complaints.push(params["entry"].to_string());
            }
            _ => {}
        }
    }
}

/// In order, so that nobody writes into its directory any more when that goes. (Debian's program is a script that waits for it.)
impl Drop for Browser {
    fn drop(&mut self) {
        if self.orders.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0").is_ok() {
            self.process.wait_at_most(PATIENCE);
        }
    }
}
