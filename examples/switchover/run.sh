#!/usr/bin/env bash
# Switchover: db2 takes over from db1 and the relay follows it. db1, which has gone its own way for a moment, comes back as a
# standby with pg_rewind, through the relay.
# shellcheck source=../common.sh
. "$(dirname "$0")/../common.sh"

hosts db1 db2 relay
# pg_rewind needs wal_log_hints, or checksums. With restore_command it gets from the relay what WAL a server has removed itself.
new_server db1 'wal_log_hints = on' \
    "restore_command = 'walrelay restore --from \"host=relay user=standby\" %f %p'"

say "Roles"
put db1/roles.sql db1:/srv/roles.sql
on db1 <<'EOF'
psql -q -f /srv/roles.sql
pgbench -q -i -s 1 postgres 2>/dev/null
EOF

say "The relay, which follows whichever of the two is the primary"
put relay/walrelay.toml relay:/etc/walrelay/walrelay.toml
put relay/hba.conf relay:/etc/walrelay/hba.conf
put relay/userlist.txt relay:/etc/walrelay/userlist.txt
put relay/pgpass relay:/etc/walrelay/pgpass
put db2/pgpass relay:~/.pgpass
serve relay <<'EOF'
walrelay --config /etc/walrelay/walrelay.toml
EOF
logged relay walrelay 'started streaming WAL from'

say "db2 is a standby below the relay"
put db2/pgpass db2:~/.pgpass
on db2 <<'EOF'
pg_basebackup -d 'host=relay user=standby application_name=db2' -c fast -R -X stream -C -S db2 -D /var/lib/postgresql/data
pg_ctl -D /var/lib/postgresql/data -l /var/lib/postgresql/log -w start >/dev/null
EOF
on db1 <<'EOF'
pgbench -n -c 4 -t 300 postgres 2>/dev/null | grep 'actually processed'
EOF
caught_up db1 db2

say "The switchover: the relay leaves db1, db2 is promoted once it has everything"
on relay <<'EOF'
walrelay fence --relay 'host=relay user=standby' --reason switchover
until walrelay promotable --relay 'host=relay user=standby' --candidate 'host=db2 user=standby'; do sleep 0.2; done
EOF
on db2 <<'EOF'
pg_ctl -D /var/lib/postgresql/data -w promote >/dev/null
psql -q -c CHECKPOINT
EOF
logged relay walrelay 'is passed: timeline 2 is followed'

say "Somebody still writes to db1: nobody else will ever have that"
on db1 <<'EOF'
psql -q -c "CREATE TABLE lost AS SELECT 1"
pg_ctl -D /var/lib/postgresql/data -w stop >/dev/null
EOF

say "db1 comes back through the relay"
put db2/pgpass db1:~/.pgpass
on db1 <<'EOF'
psql -q -d 'host=relay user=standby replication=1' -c 'CREATE_REPLICATION_SLOT db1 PHYSICAL (RESERVE_WAL)'
pg_rewind -c -D /var/lib/postgresql/data --source-server 'host=relay user=rewind dbname=postgres'
touch /var/lib/postgresql/data/standby.signal
cat >> /var/lib/postgresql/data/postgresql.auto.conf <<END
primary_conninfo = 'host=relay user=standby application_name=db1'
primary_slot_name = 'db1'
END
pg_ctl -D /var/lib/postgresql/data -l /var/lib/postgresql/log -w start >/dev/null
EOF
on db2 <<'EOF'
pgbench -n -c 4 -t 300 postgres 2>/dev/null | grep 'actually processed'
EOF

say "What became of what the relay had acknowledged"
on relay <<'EOF'
walrelay failovers -D /var/lib/walrelay
EOF

say "Compared"
caught_up db2 db1
same_data db2 db1
[ "$(query db1 "select to_regclass('lost') is null")" = t ] || die "db1 still has what only it had"
