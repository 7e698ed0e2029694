//! What systemd hears of a relay.

use std::os::unix::net::UnixDatagram;

use walrelay_testkit::{Cluster, PATIENCE, Scratch, Server, Signal, on_one_version};

use crate::relay_below;

on_one_version!(systemd_hears_of_start_life_reload_and_stop);

fn systemd_hears_of_start_life_reload_and_stop(server: &Server) {
    let scratch = Scratch::new("notify");
    let path = scratch.join("socket");
    let listener = UnixDatagram::bind(&path).expect("the directory is ours");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("it is ours");
    listener.set_read_timeout(Some(PATIENCE)).expect("a socket has a limit");
    let next = || {
        let mut message = [0; 200];
        let len = listener.recv(&mut message).expect("systemd hears of the relay");
        String::from_utf8_lossy(&message[..len]).into_owned()
    };
    let next_but_life = || loop {
        let message = next();
        if message != "WATCHDOG=1" {
            return message;
        }
    };

    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).env("NOTIFY_SOCKET", &path.display().to_string());
    let mut relay = relay.env("WATCHDOG_USEC", "300000").start();
    assert_eq!(next_but_life(), "READY=1");
    for _ in 0..5 {
        assert_eq!(next(), "WATCHDOG=1");
    }
    relay.reload();
    assert!(next_but_life().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(next_but_life(), "READY=1");
    relay.signal(Signal::TERM);
    assert_eq!(next_but_life(), "STOPPING=1");
    assert_eq!(relay.wait_exit(), Some(0));
    relay.assert_calm();
}
