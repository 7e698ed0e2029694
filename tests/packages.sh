#!/usr/bin/env bash
# Installs the Debian package for real, in a mount namespace of its own over an overlay of this system, looks at what it has brought,
# upgrades, removes and purges it; and lints the Kubernetes manifests. `tests/packages.sh [PROGRAM]`: by default the newest of
# target/release and target/debug. The package is target/debian/*.deb if WALRELAY_DEB names one (`make deb`), else one that is put together
# here with dpkg-deb out of the same list (Cargo.toml, [package.metadata.deb]). Needs root for namespaces; what is missing is said.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "${1:-}" = --inside ] || program=${1:-$(ls -t target/release/walrelay target/debug/walrelay 2>/dev/null | head -1)}
[ "${1:-}" = --inside ] || [ -x "${program:-}" ] || { echo "no program: cargo build, or name one" >&2; exit 1; }
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
    for each in found:
        print(each, destination + (os.path.basename(each) if destination.endswith('/') else ''), mode)
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
    dpkg-deb --root-owner-group --build "$root" "$work/walrelay-$version.deb" >/dev/null
}

# Runs in the namespace, on the overlay.
inside() {
    mount -t proc proc /proc
    dpkg --install "$1" >/dev/null
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
    grep -q '^# changed' /etc/walrelay/walrelay.toml || fail 'an upgrade has replaced the configuration'
    dpkg --remove walrelay >/dev/null
    [ ! -e /usr/bin/walrelay ] || fail 'the program is left'
    [ -e /etc/walrelay/walrelay.toml ] || fail 'a removal takes the configuration'
    dpkg --purge walrelay >/dev/null 2>&1
    [ ! -e /etc/walrelay/walrelay.toml ] || fail 'a purge leaves the configuration'
    [ -s /var/lib/walrelay/pg_wal/000000010000000000000001 ] || fail 'a purge takes WAL'
    echo 'the Debian package is installed, upgraded, removed and purged as it should'
}

if [ "${1:-}" = --inside ]; then shift; inside "$@"; exit; fi

debian() {
    command -v dpkg-deb >/dev/null && command -v python3 >/dev/null || { not_tested 'the Debian package (dpkg-deb, python3)'; return; }
    assemble 0.0.1
    assemble 0.0.2
    local first=$work/walrelay-0.0.1.deb second=${WALRELAY_DEB:-$work/walrelay-0.0.2.deb}
    cp tests/packages.sh "$work/packages.sh"
    cp "$second" "$work/second.deb"
    # The work directory is on the overlay, too: it is a part of this system.
    unshare --mount sh -e -c '
        lower=$1; shift
        mkdir -p "$lower/layer"
        mount -t tmpfs tmpfs "$lower/layer"
        mkdir "$lower/layer/upper" "$lower/layer/work" "$lower/layer/root"
        mount -t overlay overlay -o "lowerdir=/,upperdir=$lower/layer/upper,workdir=$lower/layer/work" "$lower/layer/root" || exit 77
        exec chroot "$lower/layer/root" "$lower/packages.sh" --inside "$@"
    ' sh "$work" "$first" "$work/second.deb" && return
    status=$?
    [ $status = 77 ] || exit $status
    not_tested 'the Debian package (an overlay cannot be mounted here)'
}

kubernetes() {
    command -v kubectl >/dev/null && python3 -c 'import yaml' 2>/dev/null ||
        { not_tested 'the Kubernetes manifests (kubectl, python3 with yaml)'; return; }
    kubectl kustomize packaging/kubernetes > "$work/all.yaml"
    python3 tests/kubernetes.py "$work/all.yaml" "$work"
    # As in a pod: what the configuration names lies elsewhere here.
    sed -i "s|/etc/walrelay/|$work/|" "$work/walrelay.toml"
    "$program" check-config --config "$work/walrelay.toml" >/dev/null
    echo 'the Kubernetes manifests are whole, and their configuration is good'
}

debian
kubernetes
