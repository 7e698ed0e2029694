//! The page in a browser: it shows what is so, whatever peers are called, on a phone as well, and with the keyboard.
//!
//! Where there is no Chromium that is said, and nothing is tested here.

use std::net::TcpStream;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use walrelay_testkit::{
    Browser, Certificates, Cluster, Consumer, Port, Receivewal, Scratch, Server, browser, on_one_version,
    wait_until,
};

use crate::relay_below;

on_one_version!(
    the_page_shows_what_psql_says,
    a_relay_that_is_away_is_said_and_its_last_picture_stays,
    the_page_is_there_for_who_logs_in_over_tls,
    screenshots_of_a_relay_at_work,
);

/// What a name would do if it were taken for markup.
const HOSTILE: &str = "<img src=x onerror=alert(1)><script>window.taken=1</script>";

fn chromium() -> Option<Browser> {
    chromium_with(&[])
}

fn chromium_with(options: &[&str]) -> Option<Browser> {
    let found = browser::find();
    if found.is_none() {
        eprintln!("not checked: the page in a browser (Debian's package chromium, or WALRELAY_CHROMIUM)");
    }
    found.map(|program| Browser::start_with(&program, options))
}

/// The texts of a table's cells, each row joined with |.
fn table(page: &mut Browser, id: &str, columns: &[usize]) -> Vec<String> {
    let columns = columns.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let rows = page.ask(&format!(
        "[...document.getElementById('{id}').tBodies[0]?.rows ?? []]\
         .map((row) => [{columns}].map((place) => row.cells[place]?.textContent).join('|'))"
    ));
    let text = |row: &Value| row.as_str().unwrap_or_default().to_owned();
    rows.as_array().map(|rows| rows.iter().map(text).collect()).unwrap_or_default()
}

/// What lies beyond the right edge of the window; names of elements.
fn beyond_the_edge(page: &mut Browser) -> Value {
    page.ask(
        "document.documentElement.scrollWidth > window.innerWidth || \
         [...document.querySelectorAll('body *')].some((it) => !it.closest('.scroll, .unseen, .skip') && \
         it.getBoundingClientRect().right > window.innerWidth + 1)",
    )
}

fn the_page_shows_what_psql_says(server: &Server) {
    let Some(mut page) = chromium() else { return };
    let primary = Cluster::builder(server).seg_mb(1).start();
    let (port, scratch) = (Port::take(), Scratch::new("page"));
    let config = "[archive.main]\ncommand = \"echo '<b onclick=x>no</b>' >&2; exit 1\"\n";
    let config = scratch.shared_secret("walrelay.toml", config).display().to_string();
    let relay = relay_below(&primary).arg("--config").arg(&config);
    let relay = relay.arg("--http-listen").arg(&port.number().to_string()).start();
    relay.create_slot("s1");
    relay.create_slot("unused");
    // More than a plot has lines.
    (1..=9).for_each(|number| relay.create_slot(&format!("more_{number}")));
    let standby = primary.standby().name("s1").follow(&relay.conninfo()).slot("s1").start();
    let mut hostile = Consumer::connect(([127, 0, 0, 1], relay.port()).into(), HOSTILE).expect("it answers");
    hostile.start(primary.flush_lsn().seg_start(primary.seg_size())).expect("it streams");
    primary.sql("create table t as select generate_series(1, 1000)");
    primary.switch_wal();
    standby.wait_for_replay(primary.flush_lsn());

    page.set_window(1280, 900, 1.0);
    page.open(&format!("http://127.0.0.1:{}/", port.number()));
    let ask = |sql: &str| relay.psql("dbname=walrelay", &[sql]).expect("it is answered");
    let lines = |text: String| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let consumers = "select application_name, state, sent_lsn, flush_lsn, pid from pg_stat_replication";
    wait_until("the page to show the consumers", || {
        let mut shown = table(&mut page, "consumers", &[0, 1, 4, 6, 12]);
        let none = shown.iter().map(|row| row.replace("–", "")).collect::<Vec<_>>();
        shown = none;
        shown.sort();
        shown.len() == 2 && shown == lines(ask(consumers))
    });
    let shown = table(&mut page, "consumers", &[0]);
    assert!(shown.iter().any(|name| name == HOSTILE), "{shown:?}");
    let slots = "select slot_name, coalesce(active_pid::text, 'unused'), restart_lsn, wal_status from pg_replication_slots";
    wait_until("the page to show the slots", || {
        let mut shown = table(&mut page, "slots", &[0, 1, 2, 5]);
        shown.iter_mut().for_each(|row| *row = row.replace("–", ""));
        shown.sort();
        shown == lines(ask(slots))
    });
    wait_until("the page to show what is wrong", || {
        page.text("document.getElementById('trouble-list').textContent")
            .contains("archive target \"main\" takes nothing")
    });
    let events = page.text("document.getElementById('events').textContent");
    assert!(events.contains("<b onclick=x>no</b>"), "{events}");
    // Text it is, and nothing else.
    assert_eq!(page.ask("window.taken === undefined"), Value::Bool(true));
    let foreign =
        page.ask("document.querySelectorAll('main img, main script, b[onclick], [onerror]').length");
    assert_eq!(foreign, 0);
    assert_eq!(page.text("document.querySelector('#upstream .is').textContent.split(' ')[0]"), "streaming");

    // A phone, a window between, and both palettes.
    for (width, colours) in [(360, "light"), (360, "dark"), (800, "light"), (1280, "dark")] {
        page.set_window(width, 800, 1.0);
        page.prefer(colours);
        assert_eq!(beyond_the_edge(&mut page), Value::Bool(false), "{width} {colours}");
    }
    let grounds = ["light", "dark"].map(|colours| {
        page.prefer(colours);
        page.text("getComputedStyle(document.body).backgroundColor")
    });
    assert_ne!(grounds[0], grounds[1]);
    assert_eq!(poor_contrasts(&mut page), "", "dark");
    page.prefer("light");
    assert_eq!(poor_contrasts(&mut page), "", "light");

    // With the keyboard: to the link over everything, to a choice, along a plot.
    page.ask("document.activeElement?.blur(); document.body.focus(); 1");
    page.press("Tab");
    assert_eq!(page.text("document.activeElement.className"), "skip");
    page.ask("document.getElementById('hours').focus(); 1");
    page.press("Enter");
    assert_eq!(page.text("document.getElementById('hours').getAttribute('aria-pressed')"), "true");
    let drawn = "document.querySelectorAll('#plot-rate polyline').length > 0";
    wait_until("a second sample, which makes rates", || page.ask(drawn) == Value::Bool(true));
    page.ask("document.querySelector('#plot-rate .plot').focus(); 1");
    // What a screen reader is told of a slider, whenever that changes.
    let told = |page: &mut Browser| {
        let part = |page: &mut Browser, name: &str| {
            page.text(&format!(
                "document.querySelector('#plot-rate [role=slider]').getAttribute('aria-{name}')"
            ))
        };
        (part(page, "valuetext"), part(page, "valuenow"), part(page, "valuemax"))
    };
    page.press("End");
    let (newest, at, last) = told(&mut page);
    assert!(newest.contains(": received ") && at == last, "{newest} {at} {last}");
    page.press("ArrowLeft");
    let (read, at, _) = told(&mut page);
    assert!(read.contains(": received ") && read != newest && at != last, "{read} {at} {last}");
    // It stays what it is while time goes on.
    let now = "document.getElementById('seen').textContent";
    let seen = page.text(now);
    wait_until("the page to ask again", || page.text(now) != seen);
    assert_eq!(told(&mut page).0, read);
    // All slots are drawn or counted.
    let more = "document.getElementById('plot-held-more').textContent";
    wait_until("slots that are not drawn to be counted", || {
        page.text(more).starts_with("and 3 more slots, with ")
    });
    assert_eq!(page.ask("document.querySelectorAll('#plot-held .legend li').length"), 8);
    let alternative = page.text("document.getElementById('plot-rate-text').textContent");
    assert!(alternative.contains("received:"), "{alternative}");
    let unlabelled = page.ask(
        "[...document.querySelectorAll('table')].filter((it) => it.rows.length && (!it.caption || !it.querySelector('th[scope=col]'))).length + \
         [...document.querySelectorAll('.plot, [role=region], section')].filter((it) => !it.getAttribute('aria-label') && \
         !it.getAttribute('aria-labelledby')?.split(' ').every((id) => document.getElementById(id))).length",
    );
    assert_eq!(unlabelled, 0);
    assert_eq!(page.complaints(), [""; 0]);
}

/// `make screenshots`: so many minutes of a relay with all kinds of consumers, and then docs/images. Without the variable nothing.
const SCREENSHOTS: &str = "WALRELAY_SCREENSHOTS";

fn screenshots_of_a_relay_at_work(server: &Server) {
    let Ok(minutes) = std::env::var(SCREENSHOTS) else { return };
    let minutes: u64 = minutes.parse().expect("WALRELAY_SCREENSHOTS is a number of minutes");
    let mut page = chromium().expect("screenshots take Chromium");
    let primary = Cluster::builder(server).start();
    let (port, scratch) = (Port::take(), Scratch::new("srv"));
    let config = format!("[archive.main]\nurl = \"file://{}\"\n", scratch.dir("wal-archive").display());
    let config = scratch.shared_secret("walrelay.toml", &config).display().to_string();
    let relay = relay_below(&primary).arg("--config").arg(&config).arg("--wal-keep-size").arg("0");
    let relay = relay.arg("--http-listen").arg(&port.number().to_string()).start();
    relay.create_slots(&["standby1", "standby2", "wal_backup", "old_standby"]);
    let standby = |name: &str| primary.standby().name(name).follow(&relay.conninfo()).slot(name);
    let standbys =
        [standby("standby1").start(), standby("standby2").conf("recovery_min_apply_delay = 8s").start()];
    let mut backup = Receivewal::start(server, &relay.conninfo(), "wal_backup");
    primary.pgbench_init(5);
    page.set_window(1280, 2100, 1.0);
    page.open(&format!("http://localhost:{}/", port.number()));
    // Some load in each sample of the page's history, now more and now less; the backup stands still for a while.
    let number = "fetch('/api/history?since=1000000').then((it) => it.json()).then((it) => it.number)";
    let mut seen: u64 = 0;
    while seen < minutes * 6 {
        primary.pgbench(2, 200 + 900 * (seen % 7 % 3) as u32);
        wait_until("the next sample", || page.ask(number).as_u64().is_some_and(|number| number > seen));
        seen = page.ask(number).as_u64().expect("a number");
        match seen % 18 {
            9 => backup.hold(),
            12 => backup.go_on(),
            _ => {}
        }
    }
    assert_eq!(standbys.len(), 2, "they are there to the end");
    for (name, colours, (width, height, scale)) in [
        ("light", "light", (1280, 2100, 1.0)),
        ("dark", "dark", (1280, 2100, 1.0)),
        ("phone", "light", (400, 1500, 1.5)),
    ] {
        page.prefer(colours);
        page.set_window(width, height, scale);
        page.ask("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))");
        let picture = BASE64_STANDARD.decode(page.picture()).expect("base64");
        let file = format!("{}/docs/images/page-{name}.png", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(&file, picture).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

/// Texts whose contrast to what lies behind them is below 4.5 (WCAG 2, AA).
fn poor_contrasts(page: &mut Browser) -> String {
    page.text(
        "(() => {
           const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
           const light = (rgb) => rgb.slice(0, 3).map((part) => part / 255)
             .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
             .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
           const behind = (it) => {
             for (let at = it; at; at = at.parentElement) {
               const ground = parse(getComputedStyle(at).backgroundColor);
               if (ground.length === 3 || ground[3] > 0) return ground;
             }
             return [255, 255, 255];
           };
           const texts = [...document.querySelectorAll('body *')].filter((it) => it.checkVisibility() &&
             !it.closest('.unseen, .skip') && [...it.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
           const poor = texts.map((it) => {
             const style = getComputedStyle(it);
             const [a, b] = [light(parse(it.closest('svg') ? style.fill : style.color)), light(behind(it))];
             return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), it];
           }).filter(([contrast]) => contrast < 4.5);
           return poor.map(([contrast, it]) => `${it.tagName}.${it.getAttribute('class')} ${contrast.toFixed(2)}`).join(', ');
         })()",
    )
}

fn a_relay_that_is_away_is_said_and_its_last_picture_stays(server: &Server) {
    let Some(mut page) = chromium() else { return };
    let primary = Cluster::builder(server).start();
    let port = Port::take();
    let mut relay = relay_below(&primary).arg("--http-listen").arg(&port.number().to_string()).start();
    relay.create_slot("s1");
    let state = "document.getElementById('state').textContent";
    page.open(&format!("http://localhost:{}/", port.number()));
    wait_until("the page to show it", || page.text(state) == "all is well");
    relay.kill9();
    wait_until("the page to say that it is away", || page.text(state) == "away");
    let said = page.text("document.getElementById('away').textContent");
    assert!(said.starts_with("No answer from the relay since"), "{said}");
    assert!(page.text("document.getElementById('slots').textContent").contains("s1"));
    relay.start();
    assert!(TcpStream::connect(("127.0.0.1", port.number())).is_ok());
    wait_until("the page to go on", || page.text(state) == "all is well");
    assert_eq!(page.ask("document.getElementById('away').hidden"), Value::Bool(true));
}

fn the_page_is_there_for_who_logs_in_over_tls(server: &Server) {
    // The browser does not know the authority.
    let Some(mut page) = chromium_with(&["--ignore-certificate-errors"]) else { return };
    let primary = Cluster::builder(server).start();
    primary.sql("create role watcher login password 'sword:fish' in role pg_monitor");
    let (certificates, port) = (Certificates::new(), Port::take());
    let rules =
        "hostssl walrelay all 127.0.0.1/32 scram-sha-256\nhost all,replication postgres 127.0.0.1/32 trust\n";
    let relay = relay_below(&primary).hba(rules).tls(&certificates).arg("--auth-query");
    let relay = relay.arg("--http-listen").arg(&port.number().to_string());
    let relay = relay.arg("--http-ssl").arg("on").arg("--http-auth").arg("on").start();
    relay.create_slot("s1");
    let (state, slots) =
        ("document.getElementById('state')?.textContent", "document.getElementById('slots')?.textContent");
    page.open(&format!("https://watcher:sword%3Afish@localhost:{}/", port.number()));
    wait_until("the page to show the relay", || page.text(state) == "all is well");
    assert!(page.text(slots).contains("s1"), "{}", page.text(slots));
    // The browser sends the login with what the page asks for, and over time.
    relay.create_slot("s2");
    wait_until("the page to go on", || page.text(slots).contains("s2"));
    assert_eq!(page.complaints(), [""; 0]);
}
