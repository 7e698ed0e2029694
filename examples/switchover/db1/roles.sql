CREATE ROLE walrelay LOGIN REPLICATION PASSWORD 'secret of the relay';
CREATE ROLE standby LOGIN REPLICATION PASSWORD 'secret of the standbys';
-- What pg_rewind needs, and no more.
CREATE ROLE rewind LOGIN PASSWORD 'secret of pg_rewind';
GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
    pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) TO rewind;
