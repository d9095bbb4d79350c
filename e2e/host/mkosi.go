package host

import (
	"context"
	_ "embed" // for the recipe
	"os"
	"path/filepath"
)

// mkosiConf is also the recipe in README.
//
//go:embed mkosi.conf
var mkosiConf string

// enterMkosiRoot runs in a mount and pid namespace of its own. It mounts a root that
// disappears with them: an overlay on a host's root, volatile so that dpkg does not wait
// for the disk. Arguments: the host's root, a script to run in the new root, and the
// script's arguments.
const enterMkosiRoot = `set -eu
mkdir upper work root
mount -t overlay overlay -o "lowerdir=$1,upperdir=upper,workdir=work,volatile" root
mount --rbind /dev root/dev
mount --rbind /sys root/sys
mount -t proc proc root/proc
mount --bind .. root/srv
cp --dereference --remove-destination /etc/hosts /etc/resolv.conf root/etc
shift
exec chroot root /bin/sh -c "$@"
`

// buildMkosiImages makes /srv/debian and /srv/disk.raw from /srv/build/recipe. The disk is
// made from the tree, so that packages are installed once.
//
// A file in mkosi's apt sandbox says where packages are. The options of mkosi do not fit:
// Mirror= also needs debian-debug, which mirrors do not have, and LocalMirror= trusts
// unsigned packages (mkosi 25.3, distributions/debian.py).
const buildMkosiImages = `set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -qy --no-install-recommends -o DPkg::Options::=--force-unsafe-io mkosi
cd /srv/build/recipe
mkdir -p mkosi.sandbox/etc/apt/sources.list.d
cat >mkosi.sandbox/etc/apt/sources.list.d/mkosi.sources <<END
Types: deb
URIs: $1
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
build() { mkosi --workspace-dir=/srv/build --output-dir=/srv "$@" build; }
build
build --format=disk --output=disk --package= --base-tree=/srv/debian --cache-only=always
`

// MkosiTree returns a directory with a guest that boots, made by Debian's mkosi: Debian
// trixie with systemd, networkd and resolved. It must not be changed.
func MkosiTree(ctx context.Context) (string, error) {
	return mkosiImage(ctx, "debian")
}

// MkosiDisk returns a disk image with the guest of MkosiTree: a GPT with one ext4 root
// partition, with its type in the Discoverable Partitions Specification, and without
// kernel and boot loader. It must not be changed.
func MkosiDisk(ctx context.Context) (string, error) {
	return mkosiImage(ctx, "disk.raw")
}

func mkosiImage(ctx context.Context, name string) (string, error) {
	dir, err := cached(ctx, "images", "mkosi", mkosiConf+enterMkosiRoot+buildMkosiImages, makeMkosiImages)
	return filepath.Join(dir, name), err
}

// makeMkosiImages runs the mkosi of Debian trixie, regardless of the machine's own.
func makeMkosiImages(ctx context.Context, dir string) error {
	root, err := hostRoot(ctx, "trixie")
	if err != nil {
		return err
	}
	build := filepath.Join(dir, "build")
	recipe := filepath.Join(build, "recipe")
	if err := os.MkdirAll(recipe, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(recipe, "mkosi.conf"), []byte(mkosiConf), 0o644); err != nil {
		return err
	}
	progress("mkosi of Debian trixie makes a tree and a disk (about 2 minutes)…")
	err = run(ctx, "unshare", "--mount", "--propagation=private", "--pid", "--kill-child", "--wd="+build,
		"/bin/sh", "-c", enterMkosiRoot, "sh", root, buildMkosiImages, "sh", mirror())
	if err != nil {
		return err
	}
	return removeTree(build)
}
