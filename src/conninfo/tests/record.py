#!/usr/bin/env python3
"""Asks real libpq what it makes of connection strings, one case a line of libpq.tsv.

usage: record.py LIBPQ.so [LIBPQ.so ...] < inputs.txt > libpq.tsv

The first library is asked, and the next if a feature was left out of its build. Recorded with 18 and 17. Inputs and values have
backslash, tab and newline escaped. Columns: input; "parses" or "fails" (PQconninfoParse); "valid" or "invalid"
(PQconnectStart, before it connects); libpq's message; then every keyword=value that the string sets.
"""
import ctypes, os, sys


class Option(ctypes.Structure):
    _fields_ = [(n, ctypes.c_char_p) for n in ("keyword", "envvar", "compiled", "val", "label", "dispchar")]
    _fields_.append(("dispsize", ctypes.c_int))


def load(path):
    lib = ctypes.CDLL(path)
    lib.PQconninfoParse.restype = ctypes.POINTER(Option)
    lib.PQconninfoParse.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p)]
    lib.PQconnectStart.restype = ctypes.c_void_p
    lib.PQconnectStart.argtypes = [ctypes.c_char_p]
    for name, result in (("PQstatus", ctypes.c_int), ("PQerrorMessage", ctypes.c_char_p), ("PQfinish", None)):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, [ctypes.c_void_p]
    return lib


def ask(lib, text):
    message = ctypes.c_char_p()
    options = lib.PQconninfoParse(text, ctypes.byref(message))
    if not options:
        return ["fails", "invalid", message.value.strip()], []
    values, i = [], 0
    while options[i].keyword:
        if options[i].val is not None:
            values.append(options[i].keyword + b"=" + options[i].val)
        i += 1
    conn = lib.PQconnectStart(text)
    message = lib.PQerrorMessage(conn).strip() if lib.PQstatus(conn) == 1 else b""
    lib.PQfinish(conn)
    if message.startswith((b"connection to server", b"could not translate host name")):
        message = b""
    return ["parses", "invalid" if message else "valid", message], values


def escape(text):
    return text.decode().replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def unescape(line):
    return line.encode().decode("unicode_escape").encode("latin-1")


os.environ.clear()
os.environ["HOME"] = "/nonexistent"
libraries = [load(path) for path in sys.argv[1:]]
for line in sys.stdin.read().splitlines():
    for lib in libraries:
        verdict, values = ask(lib, unescape(line))
        if b"not compiled in" not in verdict[2]:
            break
    fields = [unescape(line)] + [v if isinstance(v, bytes) else v.encode() for v in verdict] + values
    print("\t".join(escape(field) for field in fields))
