#!/usr/bin/env bash
# Installs the Debian package for real, in a mount namespace of its own over an overlay of this system, looks at what it has brought,
# upgrades, removes and purges it; has it run under a systemd of its own (`tests/systemd.sh`); does the same, but for that, with the RPM;
# and has kustomize make the Kubernetes manifests.
# `tests/packages.sh [PROGRAM]`: by default the newest of target/release and target/debug. The Debian package is the one that WALRELAY_DEB
# names (`make deb`), whose files have to be those of the list, else one that is put together here with dpkg-deb out of that list
# (Cargo.toml, [package.metadata.deb]). The RPM is the one that WALRELAY_RPM names (`make rpm`), else one that cargo-generate-rpm makes, if
# it is installed; the older one that is upgraded is made by it in any case. Needs root for namespaces; what is missing is said.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in --inside*) is_inside=1 ;; *) is_inside= ;; esac
[ "$is_inside" ] || program=${1:-$(ls -t target/release/walrelay target/debug/walrelay 2>/dev/null | head -1)}
[ "$is_inside" ] || [ -x "${program:-}" ] || { echo "no program: cargo build, or name one" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() { echo "packages: $*" >&2; exit 1; }
not_tested() { echo "not tested: $*"; }

# The list of Cargo.toml, as `source destination mode` with the papers of this program.
assemble() {
    local version=$1 root=$work/deb-$1
    mkdir -p "$root/DEBIAN" target/package/man
    "$program" man target/package/man
    for shell in bash fish zsh; do "$program" completions $shell > target/package/walrelay.$shell; done
    python3 - > "$work/assets" <<'P'
import glob, os, tomllib
deb = tomllib.load(open('Cargo.toml', 'rb'))['package']['metadata']['deb']
for source, destination, mode in deb['assets']:
    found = [source] if source.startswith('target/release/') else sorted(glob.glob(source))
    assert found, f'nothing is at {source}'
    # What stands before a wildcard is left out, as cargo-deb does.
    base = os.path.dirname(source.split('*')[0])
    for each in found:
        print(each, destination + (os.path.relpath(each, base) if destination.endswith('/') else ''), mode)
P
    while read -r source destination mode; do
        [ "$source" != target/release/walrelay ] || source=$program
        # Its debug information would only have to be copied.
        install -D -m "$mode" "$source" "$root/$destination"
    done < "$work/assets"
    strip "$root/usr/bin/walrelay"
    install -m 755 packaging/deb/postinst packaging/deb/prerm packaging/deb/postrm "$root/DEBIAN"
    echo /etc/walrelay/walrelay.toml > "$root/DEBIAN/conffiles"
    printf '%s\n' 'Package: walrelay' "Version: $version" "Architecture: $(dpkg --print-architecture)" \
        'Maintainer: The walrelay developers <walrelay@localhost>' 'Section: database' 'Priority: optional' \
        'Description: WAL relay for PostgreSQL' > "$root/DEBIAN/control"
    dpkg-deb --root-owner-group -Znone --build "$root" "$work/walrelay-$version.deb" >/dev/null
}

# Paths of a package, as `/usr/bin/walrelay`; what distributions compress is the same.
files_of_deb() { dpkg-deb --fsys-tarfile "$1" | tar -t | sed -n 's|^\./||; /[^/]$/p' | sed 's|^|/|; s|\.gz$||' | sort; }
files_of_rpm() { rpm -qp --nosignature --qf '[%{FILEMODES:perms} %{FILENAMES}\n]' "$1" 2>/dev/null | sed -n 's|^-[^ ]* ||p' | sort; }

# systemd does not run on the overlay: what it would be told is written down.
note_systemctl() {
    printf '#!/bin/sh\necho "$*" >> /told\n' > /told.sh
    chmod 755 /told.sh
    cp /told.sh /usr/bin/systemctl
    mkdir -p /run/systemd/system
}
# What was told since the last time: all of the first argument's words in it, none of the second's.
told() {
    local text word
    text=$(cat /told 2>/dev/null || :)
    : > /told
    for word in $2; do case "$text" in *"$word"*) ;; *) fail "$1: systemd is not told $word: $text" ;; esac; done
    for word in $3; do case "$text" in *"$word"*) fail "$1: systemd is told $word: $text" ;; esac; done
}

# Runs in the namespace, on the overlay.
inside() {
    mount -t proc proc /proc
    note_systemctl
    dpkg --install "$1" >/dev/null
    told 'the installation' daemon-reload 'try-restart disable'
    expect() { local got; got=$(stat -c '%U:%G %a' "$1"); [ "$got" = "$2" ] || fail "$1 is $got, and not $2"; }
    [ "$(walrelay --version)" = "$(/usr/bin/walrelay --version)" ] || fail 'another program comes first'
    id walrelay >/dev/null || fail 'there is no user walrelay'
    [ "$(getent passwd walrelay | cut -d: -f6)" = /var/lib/walrelay ] || fail 'its home is elsewhere'
    expect /usr/bin/walrelay 'root:root 755'
    expect /etc/walrelay 'root:walrelay 750'
    expect /etc/walrelay/walrelay.toml 'root:root 644'
    expect /usr/lib/systemd/system/walrelay.service 'root:root 644'
    [ -s /usr/share/man/man1/walrelay-init.1 ] || [ -s /usr/share/man/man1/walrelay-init.1.gz ] ||
        grep -qs '^path-exclude.*man' /etc/dpkg/dpkg.cfg.d/* || fail 'there is no manual page'
    setpriv --reuid walrelay --regid walrelay --clear-groups -- \
        walrelay check-config --config /etc/walrelay/walrelay.toml >/dev/null || fail 'the relay cannot use its configuration'
    if command -v systemd-analyze >/dev/null; then
        said=$(systemd-analyze verify --man=no --recursive-errors=no walrelay.service walrelay.socket 2>&1) || fail "$said"
        systemd-analyze security --offline=true --threshold=20 /usr/lib/systemd/system/walrelay.service >/dev/null ||
            fail 'the unit is not as hardened as it was'
    else
        not_tested 'the units (systemd-analyze)'
    fi
    # What an administrator has changed stays, over an upgrade.
    install -d -o walrelay -g walrelay -m 0700 /var/lib/walrelay /var/lib/walrelay/pg_wal
    echo wal > /var/lib/walrelay/pg_wal/000000010000000000000001
    echo '# changed' >> /etc/walrelay/walrelay.toml
    dpkg --install "$2" >/dev/null
    told 'an upgrade' 'daemon-reload try-restart' disable
    grep -q '^# changed' /etc/walrelay/walrelay.toml || fail 'an upgrade has replaced the configuration'
    dpkg --remove walrelay >/dev/null
    told 'a removal' 'disable --now daemon-reload' try-restart
    [ ! -e /usr/bin/walrelay ] || fail 'the program is left'
    [ -e /etc/walrelay/walrelay.toml ] || fail 'a removal takes the configuration'
    dpkg --purge walrelay >/dev/null 2>&1
    [ ! -e /etc/walrelay/walrelay.toml ] || fail 'a purge leaves the configuration'
    [ -s /var/lib/walrelay/pg_wal/000000010000000000000001 ] || fail 'a purge takes WAL'
    echo 'the Debian package is installed, upgraded, removed and purged as it should'
}

# Runs this script over an overlay of this system, in a mount namespace of its own; 77 if that cannot be.
on_overlay() {
    cp tests/packages.sh "$work/packages.sh"
    # The work directory is on the overlay, too: it is a part of this system.
    unshare --mount sh -e -c '
        lower=$1; shift
        mkdir -p "$lower/layer"
        mount -t tmpfs tmpfs "$lower/layer" || exit 77
        mkdir "$lower/layer/upper" "$lower/layer/work" "$lower/layer/root"
        mount -t overlay overlay -o "lowerdir=/,upperdir=$lower/layer/upper,workdir=$lower/layer/work" "$lower/layer/root" || exit 77
        exec chroot "$lower/layer/root" "$lower/packages.sh" "$@"
    ' sh "$work" "$@"
}

debian() {
    command -v dpkg-deb >/dev/null && command -v python3 >/dev/null || { not_tested 'the Debian package (dpkg-deb, python3)'; return; }
    assemble 0.0.1
    assemble 0.0.2
    local first=$work/walrelay-0.0.1.deb second=${WALRELAY_DEB:-$work/walrelay-0.0.2.deb}
    # cargo-deb adds a copyright file and a changelog.
    diff <(files_of_deb "$first") <(files_of_deb "$second" | grep -v '/usr/share/doc/walrelay/\(copyright\|changelog.*\)$') ||
        fail "$second does not have the files of the list"
    cp "$second" "$work/second.deb"
    local status=0 why
    on_overlay --inside "$first" "$work/second.deb" || status=$?
    [ $status != 77 ] || { not_tested 'the Debian package (an overlay cannot be mounted here)'; return; }
    [ $status = 0 ] || exit $status
    why=$(tests/systemd.sh "$first" "$work/second.deb") || status=$?
    [ $status != 77 ] || { not_tested "the Debian package under systemd ($why)"; return; }
    echo "$why"
    [ $status = 0 ] || exit $status
}

# On the overlay: its files, their owners and modes, and that what an administrator has changed stays.
inside_rpm() {
    mount -t proc proc /proc
    note_systemctl
    # Debian's rpm has no database, and knows of no package.
    rpm() { command rpm --nosignature --define '_dbpath /rpmdb' "$@"; }
    rpm --initdb
    rpm --install --nodeps "$1"
    told 'the installation of the RPM' daemon-reload 'try-restart disable'
    id walrelay >/dev/null || fail 'the RPM makes no user walrelay'
    [ "$(stat -c '%U:%G %a' /etc/walrelay)" = 'root:walrelay 750' ] || fail 'the RPM leaves /etc/walrelay to others'
    [ "$(stat -c '%U:%G %a' /usr/bin/walrelay)" = 'root:root 755' ] || fail 'the program of the RPM cannot be run'
    setpriv --reuid walrelay --regid walrelay --clear-groups -- \
        walrelay check-config --config /etc/walrelay/walrelay.toml >/dev/null || fail 'the relay cannot use its configuration'
    rpm -V --nodeps walrelay --nouser --nogroup | grep -v ' c ' && fail 'what the RPM has installed is not what it holds'
    # What an administrator has changed stays, over an upgrade; the relay that runs is restarted, and nothing is disabled.
    echo '# changed' >> /etc/walrelay/walrelay.toml
    install -d -o walrelay -g walrelay -m 0700 /var/lib/walrelay /var/lib/walrelay/pg_wal
    echo wal > /var/lib/walrelay/pg_wal/000000010000000000000001
    if [ -n "${2:-}" ]; then
        rpm --upgrade --nodeps "$2"
        [ "$(rpm -q walrelay | wc -l)" = 1 ] || fail 'an upgrade of the RPM leaves the old one'
        told 'an upgrade of the RPM' 'daemon-reload try-restart' disable
    else
        rpm --install --replacepkgs --nodeps --noscripts "$1"
    fi
    [ -x /usr/bin/walrelay ] || fail 'the new RPM has no program'
    grep -q '^# changed' /etc/walrelay/walrelay.toml || fail 'a newer RPM has replaced the configuration'
    rpm --erase --nodeps walrelay
    told 'a removal of the RPM' 'disable --now daemon-reload' try-restart
    [ -s /var/lib/walrelay/pg_wal/000000010000000000000001 ] || fail 'a removal of the RPM takes WAL'
    [ ! -e /usr/bin/walrelay ] || fail 'the program of the RPM is left'
    [ -e /etc/walrelay/walrelay.toml.rpmsave ] || [ -e /etc/walrelay/walrelay.toml ] || fail 'the RPM takes the configuration'
    [ -n "${2:-}" ] || not_tested 'an upgrade of the RPM (cargo install --locked cargo-generate-rpm)'
    echo "the RPM is installed${2:+, upgraded} and removed as it should"
}

# The RPM of this program under some version. cargo-generate-rpm takes what the list names of a target directory; this one has the
# program in it.
generate_rpm() {
    mkdir -p "$work/target/release"
    strip -o "$work/target/release/walrelay" "$program"
    cargo generate-rpm --target-dir "$work/target" --payload-compress none --set-metadata "version = \"$1\"" --output "$2" >/dev/null
}

rpm_package() {
    command -v rpm >/dev/null || { not_tested 'the RPM (rpm)'; return; }
    local old=$work/walrelay-0.0.1.rpm new=${WALRELAY_RPM:-$work/walrelay-0.0.2.rpm}
    if command -v cargo-generate-rpm >/dev/null; then
        generate_rpm 0.0.1 "$old"
        [ "${WALRELAY_RPM:-}" ] || generate_rpm 0.0.2 "$new"
    elif [ "${WALRELAY_RPM:-}" ]; then
        cp "$new" "$old"
    else
        not_tested 'the RPM (cargo install --locked cargo-generate-rpm)'
        return
    fi
    # Only zsh's completions lie elsewhere.
    diff <(files_of_deb "$work/walrelay-0.0.1.deb" | sed 's|/vendor-completions/|/site-functions/|' | sort) <(files_of_rpm "$new") ||
        fail "$new does not have the files of the Debian package"
    cp "$new" "$work/new.rpm"
    local both=("$old" "$work/new.rpm")
    cmp -s "${both[@]}" && both=("$old")
    on_overlay --inside-rpm "${both[@]}" || { [ $? = 77 ] || exit 1; not_tested 'the RPM (an overlay cannot be mounted here)'; }
}

# A test does that without kubectl, which says here whether kustomize takes the manifests.
kubernetes() {
    command -v kubectl >/dev/null && python3 -c 'import yaml' 2>/dev/null ||
        { not_tested 'what kustomize makes of the Kubernetes manifests (kubectl, python3 with yaml)'; return; }
    kubectl kustomize packaging/kubernetes > "$work/all.yaml"
    python3 tests/kubernetes.py "$work" "$work/all.yaml"
    # As in a pod: what the configuration names lies elsewhere here.
    sed -i "s|/etc/walrelay/|$work/|" "$work/walrelay.toml"
    "$program" check-config --config "$work/walrelay.toml" >/dev/null
    echo 'the Kubernetes manifests are whole, and their configuration is good'
}

case "${1:-}" in
    --inside) shift; inside "$@"; exit ;;
    --inside-rpm) shift; inside_rpm "$@"; exit ;;
esac

debian
rpm_package
kubernetes
