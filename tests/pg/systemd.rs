//! What systemd hears of a relay.

use walrelay_testkit::{Cluster, Server, Signal, Systemd, on_one_version};

use crate::relay_below;

on_one_version!(systemd_hears_of_start_life_reload_and_stop);

fn systemd_hears_of_start_life_reload_and_stop(server: &Server) {
    let mut systemd = Systemd::start();
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).env("NOTIFY_SOCKET", &systemd.notify_socket().display().to_string());
    let mut relay = relay.env("WATCHDOG_USEC", "300000").start();
    let next_but_life = |systemd: &mut Systemd| loop {
        let message = systemd.hear();
        if message != "WATCHDOG=1" {
            return message;
        }
    };
    assert_eq!(next_but_life(&mut systemd), "READY=1");
    for _ in 0..5 {
        assert_eq!(systemd.hear(), "WATCHDOG=1");
    }
    relay.reload();
    assert!(next_but_life(&mut systemd).starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(next_but_life(&mut systemd), "READY=1");
    relay.signal(Signal::TERM);
    assert_eq!(next_but_life(&mut systemd), "STOPPING=1");
    assert_eq!(relay.wait_exit(), Some(0));
    relay.assert_calm();
    // Nobody keeps descriptors there.
    assert_eq!(systemd.names(), [""; 0]);
}
