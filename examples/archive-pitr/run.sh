#!/usr/bin/env bash
# The relay archives to shared storage or to S3. A table is dropped by accident; a base backup and the archive bring the
# database back as it was right before.
#
# With S3_ENDPOINT the archive is s3://bucket/main there (a MinIO, say), with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
# shellcheck source=../common.sh
. "$(dirname "$0")/../common.sh"

hosts primary relay restored
mkdir "$SCRATCH/mnt/archive"
new_server primary

say "Roles for the relay and for base backups"
on primary <<'EOF'
psql -q -c "CREATE ROLE walrelay LOGIN REPLICATION PASSWORD 'secret of the relay'"
psql -q -c "CREATE ROLE backup LOGIN REPLICATION PASSWORD 'secret of the backup'"
EOF

say "The relay, which archives"
kind=${S3_ENDPOINT:+-s3}
put "relay/walrelay$kind.toml" relay:/etc/walrelay/walrelay.toml
put relay/hba.conf relay:/etc/walrelay/hba.conf
put relay/userlist.txt relay:/etc/walrelay/userlist.txt
put relay/pgpass relay:/etc/walrelay/pgpass
put "restored/restore$kind.toml" restored:/etc/walrelay/restore.toml
if [ -n "$kind" ]; then
    printf 'endpoint = "%s"\n' "$S3_ENDPOINT" |
        tee -a "$SCRATCH/relay/etc/walrelay/walrelay.toml" "$SCRATCH/restored/etc/walrelay/restore.toml"
fi
serve relay <<'EOF'
walrelay --config /etc/walrelay/walrelay.toml
EOF
logged relay walrelay 'started streaming WAL from'

say "A base backup, taken through the relay"
put restored/pgpass restored:~/.pgpass
on restored <<'EOF'
pg_basebackup -d 'host=relay user=backup' -c fast -X none -D /var/lib/postgresql/data 2>/dev/null
EOF

say "Work, a mark, and the accident"
on primary <<'EOF'
pgbench -q -i -s 1 postgres 2>/dev/null
pgbench -n -c 2 -t 300 postgres 2>/dev/null | grep 'actually processed'
psql -c "SELECT pg_create_restore_point('before the accident')"
EOF
wanted=$(fingerprint primary)
on primary <<'EOF'
psql -c "DROP TABLE pgbench_history"
EOF
lost=$(query primary 'select pg_current_wal_flush_lsn()')

say "What the archive has"
archived() {
    local end
    end=$( (become relay && walrelay archive list --config "$SCRATCH/relay/etc/walrelay/walrelay.toml") |
        sed -nE 's/^ *timeline [0-9]+: .* to ([0-9A-F]+\/[0-9A-F]+),.*/\1/p' | tail -n 1)
    [ "$(query primary "select '$lost'::pg_lsn <= '$end'")" = t ]
}
wait_until "the archive has WAL up to $lost" archived
on relay <<'EOF'
walrelay archive list --config /etc/walrelay/walrelay.toml
EOF

say "Recovery to the mark, from the base backup and the archive alone"
put restored/recovery.conf restored:/srv/recovery.conf
on restored <<'EOF'
cat /srv/recovery.conf >> /var/lib/postgresql/data/postgresql.conf
touch /var/lib/postgresql/data/recovery.signal
pg_ctl -D /var/lib/postgresql/data -l /var/lib/postgresql/log -w start >/dev/null
EOF
promoted restored

say "Compared"
found=$(fingerprint restored)
printf 'before the accident  %s\nrestored             %s\n' "$wanted" "$found"
[ "$found" = "$wanted" ] || die "what was restored is not what there was"
[ "$(query primary "select to_regclass('pgbench_history') is null")" = t ] || die "there was no accident"
printf '%s rows are there again\n' "$(query restored 'select count(*) from pgbench_history')"
