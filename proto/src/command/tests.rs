use proptest::prelude::*;

use super::lexer::KEYWORDS;
use super::*;

fn lsn(bytes: u64) -> Lsn {
    Lsn::new(bytes)
}

fn tli(number: u32) -> Option<TimelineId> {
    TimelineId::new(number)
}

#[track_caller]
fn command(text: &str) -> Command {
    match Parsed::parse(text.as_bytes()) {
        Parsed { notices, statement: Ok(Statement::Command(command)) } if notices.is_empty() => command,
        other => panic!("{text:?} gave {other:?}"),
    }
}

#[track_caller]
fn is_sql(text: &str) {
    assert_eq!(Parsed::parse(text.as_bytes()).statement, Ok(Statement::Sql), "{text:?}");
}

#[track_caller]
fn refused(text: &str, sqlstate: &str, message: &str) {
    let error = Parsed::parse(text.as_bytes()).statement.unwrap_err();
    assert_eq!((error.sqlstate(), error.to_string().as_str()), (sqlstate, message), "{text:?}");
}

#[track_caller]
fn syntax_error(text: &str) {
    refused(text, "42601", "syntax error");
}

fn physical(name: &str, temporary: bool, reserve_wal: bool) -> Command {
    let kind = SlotKind::Physical { reserve_wal };
    Command::CreateReplicationSlot(CreateSlot { name: name.into(), temporary, kind })
}

fn start(slot: Option<&str>, at: u64, timeline: Option<u32>) -> Command {
    let slot = slot.map(str::to_owned);
    Command::StartReplication(StartReplication { slot, lsn: lsn(at), tli: timeline.and_then(tli) })
}

fn read(slot: &str) -> Command {
    Command::ReadReplicationSlot { slot: slot.into() }
}

fn drop_slot(slot: &str, wait: bool) -> Command {
    Command::DropReplicationSlot { slot: slot.into(), wait }
}

fn show(name: &str) -> Command {
    Command::Show { name: name.into() }
}

#[test]
fn every_client_is_understood() {
    let check = |text: &str, expected: Command| assert_eq!(command(text), expected, "{text:?}");
    check("IDENTIFY_SYSTEM", Command::IdentifySystem);
    check("IDENTIFY_SYSTEM;", Command::IdentifySystem);
    check(" \n\tIDENTIFY_SYSTEM ; ", Command::IdentifySystem);
    check("SHOW data_directory_mode", show("data_directory_mode"));
    check("SHOW WAL_SEGMENT_SIZE", show("wal_segment_size"));
    check("SHOW \"wal_segment_size\"", show("wal_segment_size"));
    check("SHOW plugin.Setting;", show("plugin.setting"));
    check("TIMELINE_HISTORY 2", Command::TimelineHistory(tli(2).unwrap()));
    check("TIMELINE_HISTORY 2;", Command::TimelineHistory(tli(2).unwrap()));
    check("READ_REPLICATION_SLOT rw", read("rw"));
    check("READ_REPLICATION_SLOT \"rw\"", read("rw"));
    check("READ_REPLICATION_SLOT x;", read("x"));
    check("CREATE_REPLICATION_SLOT \"rw\" PHYSICAL", physical("rw", false, false));
    check("CREATE_REPLICATION_SLOT barman PHYSICAL", physical("barman", false, false));
    check("CREATE_REPLICATION_SLOT Barman PHYSICAL", physical("barman", false, false));
    check(
        "CREATE_REPLICATION_SLOT \"pg_basebackup_4711\" TEMPORARY PHYSICAL ( RESERVE_WAL)",
        physical("pg_basebackup_4711", true, true),
    );
    check("CREATE_REPLICATION_SLOT \"s\" PHYSICAL ( RESERVE_WAL)", physical("s", false, true));
    check("CREATE_REPLICATION_SLOT x PHYSICAL (RESERVE_WAL true);", physical("x", false, true));
    check("CREATE_REPLICATION_SLOT s1 PHYSICAL RESERVE_WAL", physical("s1", false, true));
    check("CREATE_REPLICATION_SLOT walg  PHYSICAL   ", physical("walg", false, false));
    check("DROP_REPLICATION_SLOT \"rw\"", drop_slot("rw", false));
    check("DROP_REPLICATION_SLOT barman WAIT", drop_slot("barman", true));
    check("START_REPLICATION 0/4000000 TIMELINE 1", start(None, 0x400_0000, Some(1)));
    check("START_REPLICATION SLOT \"rw\" 0/3000000 TIMELINE 1", start(Some("rw"), 0x300_0000, Some(1)));
    check("START_REPLICATION SLOT x PHYSICAL 0/1A000000 TIMELINE 1;", start(Some("x"), 0x1A00_0000, Some(1)));
    check("START_REPLICATION 1/00000000", start(None, 1 << 32, None));
    check("START_REPLICATION abcdef/ABCDEF", start(None, 0x00AB_CDEF_00AB_CDEF, None));
    check("BASE_BACKUP", Command::BaseBackup { options: vec![] });
    check("UPLOAD_MANIFEST", Command::UploadManifest);
}

#[test]
fn base_backup_options_are_read() {
    let option = |name: &str, value| CommandOption { name: name.into(), value };
    let text = |text: &str| Some(OptionValue::Text(text.into()));
    let expected = vec![
        option("label", text("pg_basebackup's")),
        option("progress", None),
        option("checkpoint", text("fast")),
        option("wait", Some(OptionValue::Number(0))),
        option("manifest", text("yes")),
    ];
    let typed =
        "BASE_BACKUP ( LABEL 'pg_basebackup''s',  PROGRESS,  CHECKPOINT 'fast',  WAIT 0,  MANIFEST yes)";
    assert_eq!(command(typed), Command::BaseBackup { options: expected });
    syntax_error("BASE_BACKUP LABEL 'x' PROGRESS FAST");
    syntax_error("BASE_BACKUP ()");
    syntax_error("BASE_BACKUP (LABEL 'a',)");
}

#[test]
fn the_first_word_decides() {
    for text in
        ["", ";", " ", "identify_system", "show wal_segment_size", "SELECT 1", "-- x\nIDENTIFY_SYSTEM"]
    {
        is_sql(text);
    }
    for text in [
        "/* x */ SHOW a",
        "42",
        "'IDENTIFY_SYSTEM'",
        "\"IDENTIFY_SYSTEM\"",
        "0/1",
        "SLOT",
        "IDENTIFY_SYSTEMS",
        "É",
    ] {
        is_sql(text);
    }
    refused("'open", "42601", "unterminated quoted string");
    refused("SHOW \"open", "42601", "unterminated quoted string");
}

#[test]
fn one_command_and_nothing_else() {
    for text in [
        "IDENTIFY_SYSTEM;;",
        "IDENTIFY_SYSTEM x",
        "IDENTIFY_SYSTEM; SHOW a",
        "SHOW a; SHOW b",
        "SHOW",
        "SHOW 'a'",
    ] {
        syntax_error(text);
    }
    for text in [
        "SHOW TIME ZONE",
        "SHOW a.",
        "SHOW SLOT",
        "UPLOAD_MANIFEST 1",
        "TIMELINE_HISTORY",
        "TIMELINE_HISTORY 1x1",
    ] {
        syntax_error(text);
    }
    for text in
        ["DROP_REPLICATION_SLOT s wait", "DROP_REPLICATION_SLOT SLOT", "CREATE_REPLICATION_SLOT x physical"]
    {
        syntax_error(text);
    }
    for text in [
        "CREATE_REPLICATION_SLOT 17 PHYSICAL",
        "CREATE_REPLICATION_SLOT s PHYSICAL ()",
        "CREATE_REPLICATION_SLOT s",
    ] {
        syntax_error(text);
    }
    assert_eq!(command("DROP_REPLICATION_SLOT \"slot\""), drop_slot("slot", false));
    assert_eq!(command("DROP_REPLICATION_SLOT \"SLOT\""), drop_slot("SLOT", false));
    assert_eq!(command("DROP_REPLICATION_SLOT \"a\"\"b\""), drop_slot("a\"b", false));
}

#[test]
fn positions_have_no_blanks_and_wrap_at_32_bits() {
    for text in [
        "START_REPLICATION 0 / 100000",
        "START_REPLICATION 0/ 1",
        "START_REPLICATION 0/",
        "START_REPLICATION 0/x",
    ] {
        syntax_error(text);
    }
    assert_eq!(command("START_REPLICATION 123456789/0"), start(None, 0x2345_6789 << 32, None));
    assert_eq!(command("START_REPLICATION 0/00000000000000001"), start(None, 1, None));
    syntax_error("START_REPLICATION TIMELINE 1 0/1");
    syntax_error("START_REPLICATION 0/1 SLOT x");
}

#[test]
fn timelines_are_numbers_from_one() {
    for text in ["TIMELINE_HISTORY 0", "TIMELINE_HISTORY 4294967296", "START_REPLICATION 0/1 TIMELINE 0 x"] {
        refused(text, "42601", "invalid timeline 0");
    }
    assert_eq!(command("TIMELINE_HISTORY 4294967297"), Command::TimelineHistory(TimelineId::FIRST));
    assert_eq!(
        command("TIMELINE_HISTORY 99999999999999999999999"),
        Command::TimelineHistory(tli(u32::MAX).unwrap())
    );
}

#[test]
fn slot_options_follow_walsender() {
    let reserve = |text: &str| command(&format!("CREATE_REPLICATION_SLOT s PHYSICAL ({text})"));
    for on in ["RESERVE_WAL", "reserve_wal true", "RESERVE_WAL 1", "Reserve_Wal 'ON'", "\"reserve_wal\" on"] {
        assert_eq!(reserve(on), physical("s", false, true), "{on}");
    }
    for off in ["RESERVE_WAL 'false'", "RESERVE_WAL 0", "RESERVE_WAL off"] {
        assert_eq!(reserve(off), physical("s", false, false), "{off}");
    }
    let check = |options: &str, sqlstate, message| {
        refused(&format!("CREATE_REPLICATION_SLOT s PHYSICAL {options}"), sqlstate, message);
    };
    check("(RESERVE_WAL 2)", "42601", "reserve_wal requires a Boolean value");
    check("(RESERVE_WAL tru)", "42601", "reserve_wal requires a Boolean value");
    check("(foo)", "XX000", "unrecognized option: foo");
    check("(foo) x", "42601", "syntax error");
    let conflicts =
        ["RESERVE_WAL RESERVE_WAL", "(RESERVE_WAL, RESERVE_WAL)", "EXPORT_SNAPSHOT", "(SNAPSHOT 'use')"];
    for conflict in conflicts.into_iter().chain(["TWO_PHASE", "(TWO_PHASE)", "(FAILOVER)", "(FAILOVER true)"])
    {
        check(conflict, "42601", "conflicting or redundant options");
    }
    check("(READ_REPLICATION_SLOT)", "42601", "syntax error");
    check("(BASE_BACKUP)", "XX000", "unrecognized option: base_backup");
}

#[test]
fn logical_commands_are_recognised() {
    let kind = |text: &str| match command(text) {
        Command::CreateReplicationSlot(CreateSlot { kind, .. }) => kind,
        other => panic!("{other:?}"),
    };
    let bare = kind("CREATE_REPLICATION_SLOT l LOGICAL pgoutput NOEXPORT_SNAPSHOT TWO_PHASE");
    assert_eq!(bare, kind("CREATE_REPLICATION_SLOT l LOGICAL \"pgoutput\" (SNAPSHOT 'nothing', TWO_PHASE)"));
    refused(
        "CREATE_REPLICATION_SLOT l LOGICAL p (SNAPSHOT 'x')",
        "22023",
        "unrecognized value for CREATE_REPLICATION_SLOT option \"snapshot\": \"x\"",
    );
    refused("CREATE_REPLICATION_SLOT l LOGICAL p RESERVE_WAL", "42601", "conflicting or redundant options");
    assert!(matches!(
        command("START_REPLICATION SLOT \"l\" LOGICAL 0/0 (proto_version '4', \"publication_names\" '\"p\"')"),
        Command::StartLogicalReplication { options, .. } if options.len() == 2
    ));
    syntax_error("START_REPLICATION LOGICAL 0/0");
}

#[test]
fn fences_have_numbers_and_reasons() {
    let fence =
        |epoch, reason: Option<&str>| Command::Fence(FenceOrder { epoch, reason: reason.map(str::to_owned) });
    let check = |text: &str, expected: Command| assert_eq!(command(text), expected, "{text:?}");
    check("FENCE", fence(None, None));
    check("FENCE EPOCH 7;", fence(Some(7), None));
    check("FENCE REASON 'it''s gone'", fence(None, Some("it's gone")));
    check("FENCE EPOCH 9223372036854775807 REASON ''", fence(Some(i64::MAX as u64), Some("")));
    check("UNFENCE", Command::Unfence { epoch: None });
    check("UNFENCE EPOCH 4294967297", Command::Unfence { epoch: Some(4_294_967_297) });
    check("FENCE_STATUS", Command::FenceStatus);
    let (lsn, tli) = (Lsn::new(0x1_0000_0002), TimelineId::new(3).unwrap());
    check("BRANCH_WAL 1/2 TIMELINE 3", Command::BranchWal { lsn, tli });
    for epoch in ["0", "9223372036854775808", "18446744073709551616"] {
        refused(&format!("FENCE EPOCH {epoch}"), "42601", "invalid epoch");
    }
    for wrong in [
        "FENCE 7",
        "FENCE EPOCH",
        "FENCE EPOCH '7'",
        "FENCE REASON x",
        "FENCE REASON 'x' EPOCH 7",
        "UNFENCE REASON 'x'",
        "FENCE_STATUS EPOCH 7",
        "BRANCH_WAL 1/2",
        "BRANCH_WAL TIMELINE 3",
    ] {
        syntax_error(wrong);
    }
    refused("FENCE REASON 'x", "42601", "unterminated quoted string");
    is_sql("fence");
}

#[test]
fn words_that_postgresql_does_not_have_are_names_in_its_commands() {
    for word in ["FENCE", "UNFENCE", "FENCE_STATUS", "BRANCH_WAL", "EPOCH", "REASON"] {
        let name = word.to_lowercase();
        assert_eq!(command(&format!("DROP_REPLICATION_SLOT {word}")), drop_slot(&name, false));
        assert_eq!(command(&format!("START_REPLICATION SLOT {word} 0/0")), start(Some(&name), 0, None));
        assert_eq!(command(&format!("SHOW {word}.{word}")), show(&format!("{name}.{name}")));
    }
}

#[test]
fn long_names_are_cut_with_a_notice() {
    let long = "N".repeat(64);
    for (typed, folded) in [(long.clone(), long.to_lowercase()), (format!("\"{long}\""), long.clone())] {
        let parsed = Parsed::parse(format!("DROP_REPLICATION_SLOT {typed}").as_bytes());
        assert_eq!(parsed.statement, Ok(Statement::Command(drop_slot(&folded[..63], false))));
        let expected = format!("identifier \"{folded}\" will be truncated to \"{}\"", &folded[..63]);
        assert_eq!(parsed.notices.iter().map(Truncated::to_string).collect::<Vec<_>>(), [expected]);
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z_][a-z0-9_$]{0,20}",
        "[ -~]{0,63}",
        proptest::sample::select(KEYWORDS).prop_map(str::to_owned)
    ]
}

fn option() -> impl Strategy<Value = CommandOption> {
    let value =
        prop_oneof!["[ -~]{0,20}".prop_map(OptionValue::Text), any::<u32>().prop_map(OptionValue::Number)];
    (name(), proptest::option::of(value)).prop_map(|(name, value)| CommandOption { name, value })
}

fn slot_kind() -> impl Strategy<Value = SlotKind> {
    let physical = any::<bool>().prop_map(|reserve_wal| SlotKind::Physical { reserve_wal });
    let export = CommandOption { name: "snapshot".into(), value: Some(OptionValue::Text("export".into())) };
    let logical = (name(), any::<bool>()).prop_map(move |(plugin, with)| SlotKind::Logical {
        plugin,
        options: with.then(|| export.clone()).into_iter().collect(),
    });
    prop_oneof![physical, logical]
}

fn epoch() -> impl Strategy<Value = Option<u64>> {
    proptest::option::of(1..=i64::MAX as u64)
}

fn any_command() -> impl Strategy<Value = Command> {
    let timeline = || (1..=u32::MAX).prop_map(|n| tli(n).unwrap());
    let options = || proptest::collection::vec(option(), 1..4);
    let plugin_option = (name(), proptest::option::of("[ -~]{0,9}".prop_map(OptionValue::Text)))
        .prop_map(|(name, value)| CommandOption { name, value });
    prop_oneof![
        Just(Command::IdentifySystem),
        Just(Command::UploadManifest),
        Just(Command::FenceStatus),
        (epoch(), proptest::option::of("[ -~]{0,20}"))
            .prop_map(|(epoch, reason)| Command::Fence(FenceOrder { epoch, reason })),
        epoch().prop_map(|epoch| Command::Unfence { epoch }),
        name().prop_map(|name| Command::Show { name }),
        timeline().prop_map(Command::TimelineHistory),
        name().prop_map(|slot| Command::ReadReplicationSlot { slot }),
        (name(), any::<bool>()).prop_map(|(slot, wait)| Command::DropReplicationSlot { slot, wait }),
        (name(), options()).prop_map(|(slot, options)| Command::AlterReplicationSlot { slot, options }),
        options().prop_map(|options| Command::BaseBackup { options }),
        (name(), any::<bool>(), slot_kind()).prop_map(|(name, temporary, kind)| {
            Command::CreateReplicationSlot(CreateSlot { name, temporary, kind })
        }),
        (proptest::option::of(name()), any::<u64>(), proptest::option::of(timeline())).prop_map(
            |(slot, at, tli)| Command::StartReplication(StartReplication { slot, lsn: lsn(at), tli })
        ),
        (name(), any::<u64>(), proptest::collection::vec(plugin_option, 0..3))
            .prop_map(|(slot, at, options)| Command::StartLogicalReplication { slot, lsn: lsn(at), options }),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(wanted in any_command()) {
        let parsed = Parsed::parse(wanted.to_string().as_bytes());
        prop_assert_eq!(parsed, Parsed { notices: vec![], statement: Ok(Statement::Command(wanted)) });
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = Parsed::parse(&bytes);
    }

    #[test]
    fn no_words_panic(words in proptest::collection::vec(
        prop_oneof![proptest::sample::select(KEYWORDS).prop_map(str::to_owned), "[ -~]{0,5}", "[0-9A-F]{1,9}/[0-9a-f]{1,9}"], 0..8)) {
        let _ = Parsed::parse(words.join(" ").as_bytes());
    }
}
