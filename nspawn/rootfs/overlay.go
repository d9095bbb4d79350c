// Package rootfs makes the root file system of a machine: a copy-on-write
// overlay whose layers are ID-mapped mounts.
//
// Files keep their plain owners on disk (0, 33, 1000, …) and appear in the
// merged tree shifted by the UID base of the machine. Nothing is ever chowned,
// so a mount takes the same few milliseconds whatever the size of the image,
// one image serves every machine, and a machine may come back with another UID
// base. systemd-nspawn runs on the merged tree with --private-users=BASE:65536
// --private-users-ownership=off: it can not ID-map a finished overlay itself
// (EINVAL).
//
// That needs kernel 5.19, the first whose overlayfs takes ID-mapped layers, and
// layers on a file system that can be ID-mapped. Elsewhere the machine gets a
// plain overlay in which the owners are changed (Overlay.MountChowned).
package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/mounts"
)

// maxLayers is the kernel's OVL_MAX_STACK.
const maxLayers = 500

// Overlay describes the root file system of one machine, or another merged tree
// that it sees. Without RW, Memory and Upper it is read-only, of two layers at least.
type Overlay struct {
	Lower   []string // read-only layers, the topmost first
	RW      string   // directory on a real file system that takes the changes, in upper/
	Memory  uint64   // bytes of a tmpfs of the overlay's own that takes them instead, and ends with it; 0: RW does
	Upper   string   // takes the changes itself, instead of RW; symbolic links are not followed
	Work    string   // name of the directory that overlayfs needs beside Upper; made if missing, not removed
	Root    string   // root of the machine: layers that lie in it are shifted already; may be empty
	Target  string   // where the merged tree appears; made if missing
	UIDBase uint32   // host UID of the machine's root, a multiple of idmap.RangeSize; 0: no user namespace

	// Open returns a layer as a detached mount, by its name. Without, names are of
	// directories of the host, with no symbolic link in them.
	Open func(dir string) (*os.File, error)

	// Within does work in a mount namespace whose Target is free to be mounted at while
	// it does. Without, that is a copy of the host's, which costs more the more is
	// mounted there.
	Within func(work func() error) error

	chowned bool // owners are changed in it
}

// writable is a directory with one that takes the changes and one that overlayfs
// works in, which have to be on one mount.
type writable struct{ dir, upper, work string }

// writable has no dir if the tree is read-only, or if what takes the changes is in
// memory.
func (o Overlay) writable() writable {
	if o.Upper != "" {
		return writable{dir: filepath.Dir(o.Upper), upper: filepath.Base(o.Upper), work: o.Work}
	}
	return writable{dir: o.RW, upper: "upper", work: "work"}
}

func (o Overlay) readOnly() bool { return o.RW == "" && o.Upper == "" && o.Memory == 0 }

// Mount makes the merged tree appear at Target. Upon an error nothing stays
// mounted; it is idmap.ErrUnmappable if MountChowned may do.
//
// RW should lie in a directory only root may enter: a setuid-root file of the
// machine is owned by host root in there.
func (o Overlay) Mount() error { return o.mount(o.Assemble) }

// MountChowned is Mount where layers cannot be ID-mapped, see AssembleChowned.
func (o Overlay) MountChowned(ctx context.Context) error {
	return o.mount(func() (*os.File, error) { return o.AssembleChowned(ctx) })
}

// Assemble returns the merged tree as a detached mount.
func (o Overlay) Assemble() (*os.File, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	tree, err := o.assemble()
	if err == nil && !o.readOnly() {
		if err = refuseReadOnly(tree); err != nil {
			unix.Close(tree)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("assemble overlay %s: %w", o.Target, err)
	}
	return os.NewFile(uintptr(tree), o.Target), nil
}

// AssembleChowned is Assemble where layers cannot be ID-mapped: it changes the owners
// of all files, in upper/, where they are not the image's any more. The time
// that takes grows with the number of files; with metacopy (kernel 4.19) their
// contents are not copied. The kernel warns of it if layers are not trusted: what
// an image or a machine cannot set are trusted.* attributes.
func (o Overlay) AssembleChowned(ctx context.Context) (*os.File, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	plain := o
	plain.UIDBase, plain.chowned = 0, true
	tree, err := plain.Assemble()
	if err != nil {
		return nil, err
	}
	if err := chown(ctx, int(tree.Fd()), ".", o.UIDBase); err != nil {
		tree.Close()
		return nil, fmt.Errorf("assemble overlay %s: change owners: %w", o.Target, err)
	}
	return tree, nil
}

// mount attaches the merged tree that assemble returns, detached.
func (o Overlay) mount(assemble func() (*os.File, error)) error {
	if err := o.validate(); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	if err := o.prepareTarget(); err != nil {
		return fmt.Errorf("prepare overlay %s: %w", o.Target, err)
	}
	tree, err := assemble()
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, o.Target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach overlay to %s: %w", o.Target, err)
	}
	return nil
}

func (o Overlay) validate() error {
	if len(o.Lower) == 0 {
		return errors.New("no lower layer")
	}
	if len(o.Lower) > maxLayers {
		return fmt.Errorf("%d lower layers, overlayfs takes %d", len(o.Lower), maxLayers)
	}
	for _, dir := range append([]string{o.RW, o.Upper, o.Target}, o.Lower...) {
		if dir != "" && !filepath.IsAbs(dir) {
			return fmt.Errorf("path %q is not absolute", dir)
		}
	}
	if o.UIDBase%idmap.RangeSize != 0 {
		return fmt.Errorf("UID base %d is not a multiple of %d", o.UIDBase, idmap.RangeSize)
	}
	return nil
}

// prepareTarget makes the target if it is missing and refuses one that is in use.
func (o Overlay) prepareTarget() error {
	if err := os.MkdirAll(o.Target, 0o755); err != nil {
		return err
	}
	mounted, err := mounts.IsPoint(o.Target)
	if err != nil {
		return err
	}
	if mounted {
		return fmt.Errorf("something is mounted there already: %w", unix.EBUSY)
	}
	return nil
}

// prepareWork makes the work directory beside Upper, in the directory that is open.
func (o Overlay) prepareWork(beside int) error {
	mounted, err := mounts.IsPoint(o.Upper)
	if err != nil {
		return err
	}
	if mounted {
		return fmt.Errorf("something is mounted at %s: overlayfs has to have a work directory beside it on the same mount, use a directory in it", o.Upper)
	}
	if err := unix.Mkdirat(beside, o.Work, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make work directory: %w", err)
	}
	return nil
}

// prepareRW makes rw/work, and rw/upper, which looks like the root of the topmost
// layer, top, with its owner shifted: the merged root shows the attributes of upper.
// That gets its name last, so an upper/ left by an interrupted try is not taken
// for a finished one.
func (o Overlay) prepareRW(rw string, top int, shift uint32) error {
	if err := os.MkdirAll(filepath.Join(rw, "work"), 0o700); err != nil {
		return err
	}
	upper := filepath.Join(rw, "upper")
	if _, err := os.Lstat(upper); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var root unix.Stat_t
	if err := unix.Fstatat(top, "", &root, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("stat layer %s: %w", o.Lower[0], err)
	}
	raw := upper + ".new"
	if err := os.MkdirAll(raw, 0o700); err != nil {
		return err
	}
	if o.shifted(o.Lower[0]) {
		root.Uid, root.Gid = o.unshift(root.Uid), o.unshift(root.Gid)
	}
	if err := os.Chown(raw, int(root.Uid+shift), int(root.Gid+shift)); err != nil {
		return err
	}
	if err := unix.Chmod(raw, root.Mode&0o7777); err != nil {
		return fmt.Errorf("chmod %s: %w", raw, err)
	}
	return os.Rename(raw, upper)
}

// shifted says whether the owners in a layer are those of the machine already.
func (o Overlay) shifted(layer string) bool {
	return o.Root != "" && strings.HasPrefix(layer+"/", o.Root+"/")
}

// unshift is the ID on disk of a machine's owner. Host root, who makes mount
// points in the root, stands for the machine's.
func (o Overlay) unshift(id uint32) uint32 {
	if id < o.UIDBase {
		return 0
	}
	return id - o.UIDBase
}

// refuseReadOnly catches overlayfs giving up on writing without an error, as it
// does when it can not use its work directory.
func refuseReadOnly(tree int) error {
	var stat unix.Statfs_t
	if err := unix.Fstatfs(tree, &stat); err != nil {
		return fmt.Errorf("stat overlay: %w", err)
	}
	if stat.Flags&unix.ST_RDONLY != 0 {
		return errors.New("overlay came up read-only, the kernel log tells why")
	}
	return nil
}
