#!/usr/bin/env python3
"""Restore a Seawall backup with nothing of Seawall installed.

Needs Python 3.9 or later with its standard library, `gpg` with a private key that opens the backup, and the shared
library of the codec that was used (libzstd, or liblz4), and libcrypto: all are parts of an ordinary Linux system.
The format is described in docs/repository-format.md of Seawall.

    recover.py --repository DIR --list
    recover.py --repository DIR --source NAME [--label LABEL] --into NEWDIR [--target-time "2026-11-23 14:05:00+00"]

It writes the data directory, and all WAL from the backup on into NEWDIR.wal, sets recovery up, and says how to start.
Everything is checked before it is used: documents by their hashes, objects by the hash that refers to them and by the
tag of each frame. Where an object is damaged and a repair of it lies under repairs/, that is taken. An incremental
backup is restored like a full one: its manifest names whatever it takes from earlier backups. What this script does
not do: it never starts PostgreSQL.
PostgreSQL takes a missing segment of WAL for the end of all WAL, so the script refuses a gap unless --accept-gap says
that what lies before it is enough. Until everything is written NEWDIR has no pg_control and cannot be started.
"""

import argparse
import base64
import ctypes
import ctypes.util
import datetime
import hashlib
import hmac
import json
import os
import re
import shlex
import subprocess
import sys
import zlib

MAGIC = b"SEAWALL1"
FRAME_BYTES = 2 * 1024 * 1024
TAG = 16
CONTROL = "global/pg_control"


class Unrecoverable(Exception):
    """Something that this script cannot go on with."""


LIBRARIES = {}
SONAMES = {"crypto": ("libcrypto.so.3", "libcrypto.so.1.1"), "zstd": ("libzstd.so.1",), "lz4": ("liblz4.so.1",)}


def library(name):
    """A shared library of the system, or None; found once."""
    if name not in LIBRARIES:
        LIBRARIES[name] = None
        for candidate in SONAMES[name] + (ctypes.util.find_library(name),):
            try:
                LIBRARIES[name] = LIBRARIES[name] or (candidate and ctypes.CDLL(candidate))
            except OSError:
                continue
    return LIBRARIES[name]


def piped(program, data):
    """What a program makes of its input, when there is no library."""
    try:
        done = subprocess.run([program, "-d", "-c"], input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise Unrecoverable("this system has neither the library nor the program %s" % program)
    if done.returncode != 0:
        raise Unrecoverable("%s: %s" % (program, done.stderr.decode(errors="replace").strip()))
    return done.stdout


# ---- small documents


def document(data, name):
    """A JSON document that carries the SHA-256 of its own canonical form, and its own name."""
    try:
        value = json.loads(data)
        claimed = value.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Unrecoverable("%s is no document of Seawall" % name)
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    if hashlib.sha256(canonical).hexdigest() != claimed:
        raise Unrecoverable("%s is damaged" % name)
    if value.pop("object", None) != name:
        raise Unrecoverable("%s holds what belongs elsewhere" % name)
    return value


class Repository:
    def __init__(self, root, gnupg_home, passphrase_file):
        self.root = root
        self.gnupg_home = gnupg_home
        self.passphrase_file = passphrase_file
        self.keys = {}
        self.refuse_other_format()

    def refuse_other_format(self):
        """Two objects state the format; without either, whatever is read still proves itself."""
        error = None
        for name in ("seawall.json", "seawall-copy.json"):
            try:
                stated = self.document(name)["format"]
            except (Unrecoverable, OSError, KeyError) as failed:
                error = error or failed
                continue
            if stated != 1:
                raise Unrecoverable("this script reads format 1, the repository has %r" % stated)
            return
        if not self.names("sources"):
            raise Unrecoverable("%s holds no repository of Seawall: %s" % (self.root, error))
        print("recover.py: its identity is passed over: %s" % error, file=sys.stderr)

    def path(self, name):
        return os.path.join(self.root, *name.split("/"))

    def read(self, name):
        with open(self.path(name), "rb") as file:
            return file.read()

    def proved(self, name, prove):
        """What `prove` makes of an object's bytes, or of those that lie under `repairs/` because it is locked.

        A repair is written where an object is damaged or gone and must not be replaced; it proves itself alike.
        """
        try:
            return prove(self.read(name))
        except (Unrecoverable, OSError, ValueError, LookupError, TypeError, AttributeError):
            if not self.exists("repairs/" + name):
                raise
        return prove(self.read("repairs/" + name))

    def document(self, name):
        return self.proved(name, lambda data: document(data, name))

    def names(self, folder):
        try:
            return sorted(n for n in os.listdir(self.path(folder)) if not n.startswith("."))
        except FileNotFoundError:
            return []

    def exists(self, name):
        return os.path.exists(self.path(name))

    def close(self):
        """End the agent that gpg left behind for a key ring of our own."""
        if self.gnupg_home:
            end = ["gpgconf", "--homedir", self.gnupg_home, "--kill", "gpg-agent"]
            subprocess.run(end, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def gpg(self, data):
        """The content of one OpenPGP message; nothing is returned unless gpg says that it is whole."""
        command = ["gpg", "--batch", "--quiet"]
        if self.gnupg_home:
            command += ["--homedir", self.gnupg_home]
        if self.passphrase_file:
            command += ["--pinentry-mode", "loopback", "--passphrase-file", self.passphrase_file]
        done = subprocess.run(command + ["--decrypt"], input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode != 0:
            raise Unrecoverable("gpg: %s" % done.stderr.decode(errors="replace").strip())
        return done.stdout

    def key(self, source, key_id):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}", key_id):
            raise Unrecoverable("%r is no id of a data key" % key_id)
        if key_id not in self.keys:
            folder = "sources/%s/keys/%s" % (source, key_id)
            wraps = self.names(folder)
            if not wraps:
                raise Unrecoverable("the data key %s is missing" % key_id)
            error = None
            for wrap in reversed(wraps):
                try:
                    wrapped = self.document("%s/%s" % (folder, wrap))["wrapped"]
                    self.keys[key_id] = base64.b64decode(self.gpg(wrapped.encode()))
                    break
                except (Unrecoverable, KeyError, ValueError) as failed:
                    error = failed
            else:
                raise error
        return self.keys[key_id]

    def open(self, source, name, logical=None, sha256=None):
        """Frames of one sealed object: plain bytes and whether each is the final one.

        Whoever knows the object's hash gets frames while they are opened; without it all are opened first, so that
        what a repair lies beside is found damaged before anything of it is used.
        """

        def opened(data):
            if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
                raise Unrecoverable("%s is damaged: its SHA-256 differs" % name)
            if not data.startswith(MAGIC):
                data = self.gpg(data)
            parts = frames(memoryview(data), logical or name[len("sources/") :], lambda key: self.key(source, key))
            return parts if sha256 is not None else list(parts)

        return self.proved(name, opened)


# ---- sealed objects


class AesGcm:
    """AES-256-GCM through OpenSSL's libcrypto (EVP_DecryptInit_ex and friends)."""

    crypto = None

    def __init__(self, key):
        if AesGcm.crypto is None:
            AesGcm.crypto = library("crypto")
            if AesGcm.crypto is None:
                raise Unrecoverable("this system has no libcrypto (OpenSSL), which opens sealed objects")
            for name in ("EVP_CIPHER_CTX_new", "EVP_aes_256_gcm"):
                getattr(AesGcm.crypto, name).restype = ctypes.c_void_p
        self.key = key

    def open(self, nonce, stored, context):
        crypto, body, tag = AesGcm.crypto, bytes(stored[:-TAG]), bytes(stored[-TAG:])
        handle = ctypes.c_void_p(crypto.EVP_CIPHER_CTX_new())
        plain, count = ctypes.create_string_buffer(len(body) + TAG), ctypes.c_int(0)
        try:
            right = crypto.EVP_DecryptInit_ex(handle, ctypes.c_void_p(crypto.EVP_aes_256_gcm()), None, self.key, nonce)
            right &= crypto.EVP_DecryptUpdate(handle, None, ctypes.byref(count), context, len(context))
            right &= crypto.EVP_DecryptUpdate(handle, plain, ctypes.byref(count), body, len(body))
            length = count.value
            right &= crypto.EVP_CIPHER_CTX_ctrl(handle, 0x11, TAG, tag)  # EVP_CTRL_AEAD_SET_TAG
            if right != 1 or crypto.EVP_DecryptFinal_ex(handle, plain, ctypes.byref(count)) != 1:
                raise Unrecoverable("a frame is not what was sealed with this key")
            return plain.raw[:length]
        finally:
            crypto.EVP_CIPHER_CTX_free(handle)


def frames(data, logical, key_for):
    """Verified plain bytes of each frame, and whether it is the final one; docs/repository-format.md."""
    if bytes(data[:8]) != MAGIC:
        raise Unrecoverable("%s does not begin like a sealed object of format 1" % logical)
    length = int.from_bytes(data[8:12], "big")
    try:
        header = json.loads(bytes(data[12 : 12 + length]))
    except ValueError:
        raise Unrecoverable("%s has a damaged header" % logical)
    if header["object"] != logical:
        raise Unrecoverable("%r lies where %r belongs" % (header["object"], logical))
    if header["v"] != 1 or header["seal"] not in ("aes-256-gcm", "none"):
        raise Unrecoverable("%s is of version %r and sealed by %r" % (logical, header["v"], header["seal"]))
    digest = hashlib.sha256(data[: 12 + length]).digest()
    cipher = None
    if header["seal"] == "aes-256-gcm":
        extracted = hmac.new(bytes.fromhex(header["salt"]), key_for(header["key"]), "sha256").digest()
        info = b"seawall/1 " + header["object"].encode() + b"\x01"
        cipher = AesGcm(hmac.new(extracted, info, "sha256").digest())
    position, number, final, plain_hash = 12 + length, 0, False, hashlib.sha256()
    while not final:
        frame_header = bytes(data[position : position + 9])
        if len(frame_header) < 9:
            raise Unrecoverable("%s is cut off" % logical)
        stored_length, plain_length = (int.from_bytes(frame_header[a : a + 4], "big") for a in (0, 4))
        final, raw = bool(frame_header[8] & 1), bool(frame_header[8] & 2)
        stored = data[position + 9 : position + 9 + stored_length]
        if len(stored) != stored_length or stored_length < TAG or plain_length > FRAME_BYTES:
            raise Unrecoverable("%s is cut off" % logical)
        if cipher is not None:
            nonce = bytes.fromhex(header["nonce"]) + number.to_bytes(4, "big") + bytes([final])
            body = cipher.open(nonce, stored, digest + frame_header)
        else:
            # Without encryption the bytes are proved by a SHA-256: of the object, or for WAL of what is in it.
            body = bytes(stored[:-TAG])
        plain = body if raw else DECODERS[header["codec"]](body, plain_length)
        if len(plain) != plain_length:
            raise Unrecoverable("a frame of %s has the wrong length" % logical)
        plain_hash.update(plain)
        yield plain, final
        position, number = position + 9 + stored_length, number + 1
    if header["kind"] != "bundle" and position != len(data):
        raise Unrecoverable("%s is followed by bytes that do not belong to it" % logical)
    if header["extra"].get("sha256", plain_hash.hexdigest()) != plain_hash.hexdigest():
        raise Unrecoverable("%s does not hold what its header states" % logical)


def zstd(body, length):
    lib = library("zstd")
    if lib is None:
        return piped("zstd", body)
    lib.ZSTD_decompress.restype = ctypes.c_size_t
    plain = ctypes.create_string_buffer(max(length, 1))
    if lib.ZSTD_decompress(plain, ctypes.c_size_t(length), body, ctypes.c_size_t(len(body))) != length:
        raise Unrecoverable("a frame does not decompress")
    return plain.raw[:length]


def lz4(body, length):
    lib = library("lz4")
    if lib is None:
        return piped("lz4", body)
    lib.LZ4F_decompress.restype = lib.LZ4F_createDecompressionContext.restype = ctypes.c_size_t
    context = ctypes.c_void_p()
    lib.LZ4F_createDecompressionContext(ctypes.byref(context), 100)
    plain, done, taken = ctypes.create_string_buffer(max(length, 1)), 0, 0
    source = ctypes.create_string_buffer(body, len(body))
    try:
        while done < length and taken < len(body):
            out, used = ctypes.c_size_t(length - done), ctypes.c_size_t(len(body) - taken)
            into, given = ctypes.byref(plain, done), ctypes.byref(source, taken)
            state = lib.LZ4F_decompress(context, into, ctypes.byref(out), given, ctypes.byref(used), None)
            if lib.LZ4F_isError(ctypes.c_size_t(state)) or not (out.value or used.value):
                raise Unrecoverable("a frame does not decompress")
            done, taken = done + out.value, taken + used.value
    finally:
        lib.LZ4F_freeDecompressionContext(context)
    return plain.raw[:done]


def gzip(body, _length):
    try:
        return zlib.decompress(body, 31)
    except zlib.error as error:
        raise Unrecoverable("a frame does not decompress: %s" % error)


DECODERS = {
    "none": lambda body, length: body,
    "gzip": gzip,
    "zstd": zstd,
    "lz4": lz4,
}


# ---- backups


def heads(repository, source):
    """Labels and heads of what can be restored; a damaged head is named and keeps no other backup from it."""
    base = "sources/%s/backups" % source
    found = []
    for label in repository.names(base):
        if not repository.exists("%s/%s/manifest" % (base, label)):
            continue
        try:
            found.append((label, repository.document("%s/%s/head.json" % (base, label))))
        except (Unrecoverable, OSError, ValueError, KeyError) as error:
            print("recover.py: backup %s is passed over: %s" % (label, error), file=sys.stderr)
    return found


def manifest(repository, source, label):
    """Objects, special texts and files of a backup."""
    base = "sources/%s/backups/%s" % (source, label)
    head = repository.document(base + "/head.json")
    error = None
    for leaf in ("manifest", "manifest.copy"):
        try:
            plain = b"".join(
                part
                for part, _ in repository.open(
                    source, "%s/%s" % (base, leaf), (base + "/manifest")[len("sources/") :], head["manifest_sha256"]
                )
            )
            break
        except (Unrecoverable, OSError) as failed:
            error = failed
    else:
        raise Unrecoverable("both copies of the manifest are unusable: %s" % error)
    objects, specials, files, end = [], {}, [], None
    first, *lines = plain.decode("ascii").splitlines()
    if json.loads(first)["head"] != {k: v for k, v in head.items() if not k.startswith("manifest_")}:
        raise Unrecoverable("the head of %s does not say what its manifest says" % label)
    for line in lines:
        value = json.loads(line)
        if "o" in value:
            objects.append(value["o"])
        elif "s" in value:
            specials[value["s"]["name"]] = value["s"]["text"]
        elif "f" in value:
            files.append(value["f"])
        else:
            end = value["end"]
    if end is None or end["files"] != len(files) or end["objects"] != len(objects):
        raise Unrecoverable("the manifest of %s is not whole" % label)
    return head, objects, specials, files


def inside(root, path):
    if path.startswith("/") or any(part in ("..", ".") for part in path.split("/")):
        raise Unrecoverable("the manifest names %r" % path)
    return os.path.join(root, path)


def restore(repository, source, label, into):
    head, objects, specials, files = manifest(repository, source, label)
    os.makedirs(into, mode=0o700)
    spaces = {"pg_tblspc/%d" % oid: "%s.tablespaces/%d" % (into, oid) for oid, _ in head["tablespaces"]}
    wanted = {number: [] for number in range(len(objects))}
    for file in files:
        path = place(into, spaces, file["path"])
        if file["path"] in spaces:
            os.makedirs(spaces[file["path"]], mode=0o700)
            os.symlink(spaces[file["path"]], inside(into, file["path"]))
        elif file["kind"] == "directory":
            os.makedirs(path, mode=0o700, exist_ok=True)
        elif file["kind"] == "link":
            os.symlink(file["link"], path)
        else:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file["mode"] & 0o777 or 0o600))
            offset = 0
            for number, plain_offset, length, *_proof in file.get("extents", ()):
                wanted[number].append((plain_offset, length, path, offset))
                offset += length
            if offset != file["size"]:
                raise Unrecoverable("the manifest does not cover %s" % file["path"])
    for name in ("pg_wal/archive_status", "pg_wal/summaries"):
        os.makedirs(os.path.join(into, name), mode=0o700, exist_ok=True)
    for number, (name, _stored, sha256, _plain) in enumerate(objects):
        write(repository.open(source, name, None, sha256), sorted(wanted[number]))
        print("  %d of %d objects" % (number + 1, len(objects)), end="\r", file=sys.stderr)
    print(file=sys.stderr)
    if spaces:
        specials["tablespace_map"] = "".join("%s %s\n" % (k[10:], v.replace("\\", "\\\\")) for k, v in spaces.items())
    for name in ("backup_label", "tablespace_map"):
        if name in specials:
            with open(os.path.join(into, name), "w", newline="") as file:
                file.write(specials[name])
    return head, specials


def place(into, spaces, path):
    if path == CONTROL:
        # PostgreSQL cannot start without it, so it comes to its place when all else is there.
        path += ".held"
    for prefix, directory in spaces.items():
        if path.startswith(prefix + "/"):
            return inside(directory, path[len(prefix) + 1 :])
    return inside(into, path)


def write(parts, extents):
    """Give the bytes of one bundle's stream to the files that own them."""
    position, queue = 0, list(extents)
    for plain, final in parts:
        if final:
            break
        while queue and queue[0][0] < position + len(plain):
            start, length, path, offset = queue.pop(0)
            piece = plain[start - position : start - position + length]
            with open(path, "r+b") as file:
                file.seek(offset)
                file.write(piece)
            if len(piece) < length:
                done = len(piece)
                queue.insert(0, (start + done, length - done, path, offset + done))
                break
        position += len(plain)
    if queue:
        raise Unrecoverable("a bundle ends before %s" % queue[0][2])


def stored_wal(repository, source):
    """Every object of WAL by the name of its last part, but for history files."""
    base, found = "sources/%s/wal" % source, {}
    for timeline in repository.names(base):
        if re.fullmatch(r"[0-9A-F]{8}", timeline):
            for folder in repository.names("%s/%s" % (base, timeline)):
                for leaf in repository.names("%s/%s/%s" % (base, timeline, folder)):
                    found[leaf] = "%s/%s/%s/%s" % (base, timeline, folder, leaf)
    return found


def histories(repository, source):
    """(timeline, where it was left) in order, for every timeline whose history file is stored."""
    base, found = "sources/%s/wal/history" % source, {}
    for name in repository.names(base):
        if re.fullmatch(r"[0-9A-F]{8}\.history", name):
            text = b"".join(part for part, _ in repository.open(source, "%s/%s" % (base, name))).decode()
            rows = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
            found[int(name[:8], 16)] = [(int(row[0]), position(row[1])) for row in rows]
    return found


def refuse_gap(head, stored, left):
    """PostgreSQL takes a missing segment for the end of WAL, and starts there without a word.

    It looks for one history file after the other, and follows the last one that is there (timeline.c,
    findNewestTimeLine). What other timelines have, or lack, is not on its way.
    """
    size, newest = head["segment_bytes"], head["timeline"]
    while newest + 1 in left:
        newest += 1
    ancestry = [] if newest == head["timeline"] else left[newest]

    def on_path(number):
        last = (number + 1) * size - 1
        timeline = next((each for each, switch in ancestry if last < switch), newest)
        return segment("%08X" % max(timeline, head["timeline"]), number, size)

    first, needed = position(head["start_lsn"]) // size, (position(head["stop_lsn"]) - 1) // size
    numbers = {number_of(leaf, size) for leaf in stored if re.fullmatch(r"[0-9A-F]{24}", leaf)}
    last = max([needed] + [number for number in numbers if on_path(number) in stored])
    for number in range(first, last + 1):
        if on_path(number) not in stored:
            why = "the backup needs it" if number <= needed else "later WAL is there"
            raise Unrecoverable("%s is not stored, but %s; see --accept-gap" % (on_path(number), why))


def restore_wal(repository, source, head, stored, left, into, accept_gap):
    """All WAL from the backup's start on, under the names that PostgreSQL asks for."""
    os.makedirs(into, mode=0o700)
    size, count, beginnings = head["segment_bytes"], 0, {}
    start = segment("", position(head["start_lsn"]) // size, size)
    for timeline in left:
        name = "%08X.history" % timeline
        put(repository, source, "sources/%s/wal/history/%s" % (source, name), os.path.join(into, name))
    for leaf, name in sorted(stored.items()):
        if leaf[8:24] < start:
            continue
        if re.fullmatch(r"[0-9A-F]{24}", leaf):
            try:
                put(repository, source, name, os.path.join(into, leaf))
            except Unrecoverable as error:
                if not accept_gap:
                    raise
                print("recover.py: nothing behind it can be reached: %s" % error, file=sys.stderr)
            count += 1
        elif re.fullmatch(r"[0-9A-F]{24}\.(tail-[0-9A-F]{16}|partial)", leaf):
            # The closed partial of a timeline that was left holds all of it; a tail may be older.
            older = beginnings.get(leaf[:24], "")
            beginnings[leaf[:24]] = older if older.endswith(".partial") else name
    for leaf, name in beginnings.items():
        # A segment that never became whole: what was saved of it, and zeros to its full size.
        path = os.path.join(into, leaf)
        if not os.path.exists(path):
            put(repository, source, name, path)
            for newer, rows in left.items():
                # What was written after this timeline was left never happened on the newer one, if that has no copy.
                for timeline, at in rows:
                    here = timeline == int(leaf[:8], 16) and at // size == number_of(leaf, size)
                    if here and segment("%08X" % newer, number_of(leaf, size), size) not in stored:
                        os.truncate(path, min(os.path.getsize(path), at % size))
            os.truncate(path, size)
            count += 1
    return count


def position(lsn):
    high, low = lsn.split("/")
    return (int(high, 16) << 32) | int(low, 16)


def segment(timeline, number, size):
    per_log = (1 << 32) // size
    return "%s%08X%08X" % (timeline, number // per_log, number % per_log)


def number_of(name, size):
    return int(name[8:16], 16) * ((1 << 32) // size) + int(name[16:24], 16)


def put(repository, source, name, path):
    """One verified file of WAL."""
    try:
        with open(path, "wb") as file:
            for plain, _ in repository.open(source, name):
                file.write(plain)
    except (Unrecoverable, ValueError, KeyError) as error:
        # Nothing of it may stay: PostgreSQL would replay it, or take its end for the end of all WAL.
        os.unlink(path)
        raise Unrecoverable("%s: %s" % (name, error))


def configure(into, wal, specials, target):
    """Recovery settings at the end of postgresql.auto.conf, and what a directory without its configuration lacks."""
    if not os.path.exists(os.path.join(into, "postgresql.conf")):
        with open(os.path.join(into, "postgresql.conf"), "w") as file:
            file.write("# made by recover.py: the original lay elsewhere and is in recovered-configuration/\n")
    if not os.path.exists(os.path.join(into, "pg_hba.conf")):
        with open(os.path.join(into, "pg_hba.conf"), "w") as file:
            file.write("local all all peer\n")
    for name, text in specials.items():
        if name.startswith("configuration:") or name == "globals.sql":
            folder = os.path.join(into, "recovered-configuration")
            os.makedirs(folder, mode=0o700, exist_ok=True)
            with open(os.path.join(folder, name.rsplit("/", 1)[-1]), "w") as file:
                file.write(text)
    # PostgreSQL puts a path with its own placeholders after these; the shell sees the directory as one word.
    command = "cp %s/%%f %%p" % shlex.quote(wal).replace("%", "%%")
    settings = {"restore_command": command, "archive_mode": "off", "recovery_target_timeline": "latest"}
    if target:
        settings.update(recovery_target_time=target.isoformat(" "), recovery_target_action="promote")
    with open(os.path.join(into, "postgresql.auto.conf"), "a") as file:
        for name, value in settings.items():
            file.write("%s = '%s'\n" % (name, value.replace("\\", "\\\\").replace("'", "''")))
    open(os.path.join(into, "recovery.signal"), "w").close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repository", required=True, metavar="DIR")
    parser.add_argument("--list", action="store_true", help="show sources and backups")
    parser.add_argument("--source")
    parser.add_argument("--label", help="default: the newest, or the newest before --target-time")
    parser.add_argument("--into", metavar="NEWDIR", help="the data directory to make")
    parser.add_argument("--target-time", metavar="TIME", help="stop there; with an offset from UTC")
    parser.add_argument("--accept-gap", action="store_true", help="go on although WAL is missing; what follows is lost")
    parser.add_argument("--gnupg-home", metavar="DIR")
    parser.add_argument("--passphrase-file", metavar="FILE")
    options = parser.parse_args()
    try:
        return recover(options)
    except (Unrecoverable, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        print("recover.py: %s" % error, file=sys.stderr)
        return 1


def recover(options):
    repository = Repository(options.repository, options.gnupg_home, options.passphrase_file)
    try:
        return show(repository) if options.list else restore_all(repository, options)
    finally:
        repository.close()


def show(repository):
    for source in repository.names("sources"):
        for label, head in heads(repository, source):
            print("%s  %s  %s  restorable from %s" % (source, label, head["health"], head["stopped_at"]))
    return 0


def restore_all(repository, options):
    source, into = options.source, options.into and os.path.abspath(options.into)
    if not source or not into:
        raise Unrecoverable("name --source and --into, or --list")
    for path in (into, into + ".wal", into + ".tablespaces"):
        if os.path.lexists(path):
            raise Unrecoverable("%s exists already" % path)
    target = moment(options.target_time)
    label = chosen(repository, source, options.label, target)
    stored, left = stored_wal(repository, source), histories(repository, source)
    head = repository.document("sources/%s/backups/%s/head.json" % (source, label))
    try:
        refuse_gap(head, stored, left)
    except Unrecoverable as error:
        if not options.accept_gap:
            raise
        print("recover.py: nothing behind it can be reached: %s" % error, file=sys.stderr)
    print("restoring %s %s into %s" % (source, label, into))
    head, specials = restore(repository, source, label, into)
    count = restore_wal(repository, source, head, stored, left, into + ".wal", options.accept_gap)
    configure(into, into + ".wal", specials, target)
    os.sync()
    os.rename(inside(into, CONTROL + ".held"), inside(into, CONTROL))
    os.sync()
    print("%d files of WAL are in %s.wal" % (count, into))
    made = [shlex.quote(path) for path in (into, into + ".wal", into + ".tablespaces") if os.path.exists(path)]
    if os.geteuid() == 0:
        print("PostgreSQL does not run as root. Give the files to its account: chown -R postgres: %s" % " ".join(made))
    print("Then, as that account, with PostgreSQL %d: pg_ctl -D %s -w start" % (head["major_version"], made[0]))
    print("WAL archiving is off in it (archive_mode in postgresql.auto.conf) until you turn it on again.")
    return 0


def moment(text):
    """A time as PostgreSQL takes it; without an offset nobody knows whose noon is meant."""
    if not text:
        return None
    text = re.sub(r"Z$", "+00:00", text.strip())
    text = re.sub(r"([+-]\d\d)$", r"\1:00", re.sub(r"([+-]\d\d)(\d\d)$", r"\1:\2", text))
    parsed = datetime.datetime.fromisoformat(text)
    if parsed.tzinfo is None:
        raise Unrecoverable("the target time needs an offset from UTC, such as +00")
    return parsed


def chosen(repository, source, label, target):
    """The newest good backup that ended before the target: PostgreSQL does not say when it stops later than asked."""
    found = []
    for known, head in heads(repository, source):
        stopped = datetime.datetime.fromisoformat(head["stopped_at"])
        if (label is None or known == label) and (target is None or stopped < target):
            found.append((head["health"] == "good", stopped, known))
    if not found:
        raise Unrecoverable("%s of %r ends before the target" % (label or "no backup", source))
    return max(found)[2]


if __name__ == "__main__":
    sys.exit(main())
