"""What psycopg 3 and psycopg2 ask a relay without an upstream: argument 1 says how to connect."""

import sys

import psycopg
import psycopg2
from psycopg.pq import TransactionStatus

CONNINFO = sys.argv[1]
SLOT = "select slot_name, active, restart_lsn from pg_replication_slots where slot_name = %s"


def views(conn):
    for number in range(8):
        (name, active, _), = conn.execute(SLOT, ("archive",), prepare=number > 2).fetchall()
        assert (name, active) == ("archive", True), (name, active)
    with conn.cursor(binary=True) as cursor:
        pid, start = cursor.execute("select pid, backend_start from pg_stat_replication").fetchone()
        assert pid > 4194304 and start.year > 2000, (pid, start)
    with conn.pipeline():
        first = conn.execute("select 1")
        second = conn.execute(SLOT, ("none",))
        assert first.fetchone() == (1,) and second.fetchall() == []


def transactions(conn):
    conn.autocommit = False
    assert conn.execute("show transaction_read_only").fetchone() == ("on",)
    assert conn.info.transaction_status == TransactionStatus.INTRANS
    try:
        conn.execute("create table t ()")
    except psycopg.Error:
        assert conn.info.transaction_status == TransactionStatus.INERROR
    else:
        raise AssertionError("no error")
    conn.rollback()
    with conn.transaction():
        try:
            with conn.transaction():
                conn.execute("select * from pg_class where relname = %s", ("t",))
        except psycopg.Error:
            pass
        else:
            raise AssertionError("no error")
        assert conn.execute("select pg_is_in_recovery()").fetchone() == (True,)
    assert conn.info.transaction_status == TransactionStatus.IDLE


with psycopg.connect(CONNINFO, autocommit=True) as connection:
    views(connection)
    transactions(connection)
with psycopg.connect(CONNINFO, target_session_attrs="read-only") as connection:
    assert connection.execute("select 1").fetchone() == (1,)
try:
    psycopg.connect(CONNINFO, target_session_attrs="read-write")
except psycopg.OperationalError as error:
    assert "read-only" in str(error), error
else:
    raise AssertionError("it was taken for a primary")

connection = psycopg2.connect(CONNINFO)
cursor = connection.cursor()
cursor.execute("select slot_name, active from pg_replication_slots where slot_name = %s", ("archive",))
assert cursor.fetchall() == [("archive", True)]
connection.commit()
connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
cursor.execute("select pg_is_in_recovery()")
assert cursor.fetchone() == (True,)
try:
    cursor.execute("create table t ()")
except psycopg2.Error as error:
    # In the place of the upstream, and where there is none.
    assert error.pgcode in ("57P03", "0A000"), error.pgcode
else:
    raise AssertionError("no error")
connection.rollback()
connection.reset()
connection.close()
print("all is answered")
