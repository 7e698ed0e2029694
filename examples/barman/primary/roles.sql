-- For Barman's backups and checks.
CREATE ROLE barman LOGIN PASSWORD 'secret of barman';
GRANT pg_monitor, pg_checkpoint TO barman;
GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean),
    pg_switch_wal(), pg_create_restore_point(text) TO barman;
-- For its WAL.
CREATE ROLE streaming_barman LOGIN REPLICATION PASSWORD 'secret of its stream';
-- For the relay, which looks up the others' secrets here, so that it needs no copies of them.
CREATE ROLE walrelay LOGIN REPLICATION PASSWORD 'secret of the relay';
GRANT SELECT ON pg_authid TO walrelay;
