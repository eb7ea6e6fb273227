#!/usr/bin/env bash
# A study on this machine, and again on an emulated aarch64 Linux; then the comparison.
#   envs/aarch64.sh          builds what is missing below .aarch64, runs both, compares (make aarch64)
#   envs/aarch64.sh python   the emulated Python, with arguments
#   STUDY=config/studies/aarch64_usual.yaml envs/aarch64.sh   another study than aarch64.yaml
# Wants an x86-64 Debian with apt and dpkg, and the environment of `make` on the PATH; neither root nor a container.
# The emulated run ends after TIME_LIMIT seconds; what it has compiled is kept for the next one.
set -euo pipefail
cd "$(dirname "$0")/.."
STUDY=${STUDY:-config/studies/aarch64.yaml}
NAME=$(sed -n 's/^study: *//p' "$STUDY")
TIME_LIMIT=${TIME_LIMIT:-5400}
# Debian 13 has a Python that the lock supports; its emulator is static and runs under any distribution.
SUITE=trixie VERSION=3.13
BUILD=$PWD/.aarch64
ROOT=$BUILD/root APT=$BUILD/apt EMULATOR=$BUILD/emulator/usr/bin/qemu-aarch64
# One real processor, Neoverse N1: the emulator's default has every extension, and OpenBLAS picks kernels by them that
# come out wrong under emulation. It is written down in the emulated /proc/cpuinfo too, where LLVM and we read it.
export QEMU_CPU=neoverse-n1 QEMU_LD_PREFIX=$ROOT

apt_of_suite() { APT_CONFIG=$APT/apt.conf apt-get --quiet=2 "$@"; }

fetch_debian() {
	mkdir -p "$APT"/{lists/partial,archives/partial,sources}
	touch "$APT/status"
	sed -E "s/bookworm|trixie|forky/$SUITE/g" /etc/apt/sources.list.d/debian.sources >"$APT/sources/debian.sources"
	cat >"$APT/apt.conf" <<-END
		APT::Architecture "arm64";
		APT::Architectures { "arm64"; "$(dpkg --print-architecture)"; };
		APT::Install-Recommends "false";
		APT::Sandbox::User "root";
		Acquire::Languages "none";
		Dir::State "$APT";
		Dir::State::status "$APT/status";
		Dir::Cache "$APT";
		Dir::Etc::sourcelist "/dev/null";
		Dir::Etc::sourceparts "$APT/sources";
	END
	apt_of_suite update
	apt_of_suite install --yes --download-only "python$VERSION-minimal" "libpython$VERSION-stdlib" libstdc++6
	mkdir -p "$ROOT"/usr/{bin,lib} "$ROOT/proc"
	ln -sfn usr/lib "$ROOT/lib"
	ln -sfn usr/bin "$ROOT/bin"
	for package in "$APT"/archives/*_arm64.deb "$APT"/archives/*_all.deb; do
		[ ! -e "$package" ] || dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$ROOT"
	done
	(cd "$APT/archives" && apt_of_suite download "qemu-user:$(dpkg --print-architecture)")
	dpkg-deb -x "$APT"/archives/qemu-user_*.deb "$BUILD/emulator"
	cat >"$ROOT/proc/cpuinfo" <<-'END'
		processor	: 0
		Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
		CPU implementer	: 0x41
		CPU architecture: 8
		CPU variant	: 0x3
		CPU part	: 0xd0c
		CPU revision	: 1
	END
	touch "$BUILD/.debian"
}

fetch_packages() {
	# connection-pool has no wheel; it is pure Python.
	uv pip install --quiet --target "$ROOT/usr/local/lib/python$VERSION/dist-packages" --python-version "$VERSION" \
		--python-platform aarch64-manylinux_2_28 --only-binary :all: --no-binary connection-pool \
		--require-hashes -r envs/requirements.txt
	cp envs/requirements.txt "$BUILD/.packages"
}

emulated() { nice ${LIMIT:+timeout "$LIMIT"} "$EMULATOR" "$ROOT/usr/bin/python$VERSION" "$@"; }

[ -e "$BUILD/.debian" ] || fetch_debian
cmp --silent envs/requirements.txt "$BUILD/.packages" || fetch_packages
if [ "${1:-}" = python ]; then
	emulated "${@:2}"
	exit
fi
# Results are made anew, whatever they were computed with; natively Snakemake decides.
rm -rf "$BUILD/run/results/$NAME"
LIMIT=$TIME_LIMIT emulated envs/chain.py "$STUDY" "$BUILD/run"
nice snakemake --cores 1 --configfile "$STUDY" -- "results/$NAME/summary.nc"
snakemake --cores 1 --config "reference=$BUILD/run/results/$NAME" --configfile "$STUDY" -- compare
