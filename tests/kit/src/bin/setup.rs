//! Finds or installs the PostgreSQL servers that the tests run on, Barman, moto, Patroni, repmgr, Ansible, promtool, Chromium and
//! some programs, and prints where they are.
//!
//! `setup` does so for all tested versions, `setup 17 18` for these servers alone. `setup missing` only says which of them
//! could not be installed, so that the tests did nothing on them.

use std::process::ExitCode;

use walrelay_testkit::install::{self, InstallError};
use walrelay_testkit::{ansible, browser, moto, patroni, python, repmgr, tools};

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|arg| arg == "missing") {
        return tell_missing();
    }
    let wanted: Result<Vec<u32>, _> = std::env::args().skip(1).map(|arg| arg.parse()).collect();
    let Ok(mut wanted) = wanted else {
        eprintln!("usage: setup [MAJOR VERSION]...");
        return ExitCode::FAILURE;
    };
    let all = wanted.is_empty();
    if all {
        wanted.extend(install::TESTED);
    }
    // All of them, so that one run tells everything that is missing.
    let servers = wanted.into_iter().map(report);
    let others = [report_tools, report_barman, report_moto, report_optional]
        .into_iter()
        .filter(|_| all)
        .map(|report| report());
    let missing = servers.chain(others).filter_map(Result::err);
    match missing.inspect(|error| eprintln!("{error}")).count() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn report_tools() -> Result<(), InstallError> {
    println!("programs   {}", tools::ensure()?.join(", "));
    Ok(())
}

fn report_barman() -> Result<(), InstallError> {
    let python = python::ensure()?;
    println!("Barman     {:<7} {}", python.barman_version(), python.packages().display());
    Ok(())
}

fn report_moto() -> Result<(), InstallError> {
    let packages = moto::ensure()?;
    println!("moto       {:<7} {}", moto::version(), packages.display());
    Ok(())
}

/// Without them their stories do nothing.
fn report_optional() -> Result<(), InstallError> {
    let text = |found: Result<&str, InstallError>| found.map(str::to_owned);
    let optional = [
        ("Patroni", text(patroni::ensure())),
        ("repmgr", text(repmgr::ensure())),
        ("Ansible", text(ansible::ensure())),
        ("promtool", tools::ensure_promtool()),
        ("exporter", tools::ensure_postgres_exporter()),
        ("Chromium", browser::ensure()),
    ];
    for (name, found) in optional {
        match found {
            Ok(version) => println!("{name:<10} {version}"),
            Err(error) => println!("*** {name} IS MISSING, NOTHING IS TESTED WITH IT: {error}"),
        }
    }
    for (name, error) in tools::ensure_checkers() {
        println!("*** {name} IS MISSING, NOTHING IS CHECKED WITH IT: {error}");
    }
    for (name, untested, how) in tools::missing_packagers() {
        println!("*** {name} IS MISSING, {untested} NOT TESTED: {how}");
    }
    Ok(())
}

fn report(major: u32) -> Result<(), InstallError> {
    let found = install::ensure(major);
    if let Err(error) = install::note(major, found.as_ref()) {
        eprintln!("could not note whether PostgreSQL {major} is there: {error}");
    }
    match found {
        Ok(server) => println!("PostgreSQL {:<7} {}", server.version(), server.bin().display()),
        Err(error) if install::INDISPENSABLE.contains(&major) => return Err(error),
        Err(error) => println!("*** PostgreSQL {major} IS MISSING, NOTHING IS TESTED ON IT: {error}"),
    }
    Ok(())
}

fn tell_missing() -> ExitCode {
    for major in install::TESTED {
        if install::find(major).is_none() {
            let why =
                install::known_missing(major).unwrap_or_else(|| "nobody has tried to install it".to_owned());
            println!("*** NOTHING WAS TESTED ON PostgreSQL {major}: {why}");
        }
    }
    let optional = [
        ("Patroni", patroni::is_here()),
        ("repmgr", repmgr::is_here()),
        ("Ansible", ansible::is_here()),
        ("promtool", tools::promtool().is_some()),
        ("postgres_exporter", tools::postgres_exporter().is_some()),
        ("Chromium", browser::find().is_some()),
    ];
    for (name, is_here) in optional {
        if !is_here {
            println!("*** NOTHING WAS TESTED WITH {name}: it could not be installed");
        }
    }
    for name in tools::missing_checkers() {
        println!("*** NOTHING WAS CHECKED WITH {name}: it could not be installed");
    }
    for (name, untested, how) in tools::missing_packagers() {
        println!("*** {untested} NOT TESTED: {name} is not installed ({how})");
    }
    ExitCode::SUCCESS
}
