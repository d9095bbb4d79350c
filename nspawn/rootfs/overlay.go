// Package rootfs makes the root file system of a machine: a copy-on-write overlay whose
// layers are ID-mapped mounts.
//
// On disk, files keep their plain owners (0, 33, 1000, …). In the merged tree, the owners
// are shifted by the UID base of the machine. Nothing is ever chowned. So a mount takes
// the same few milliseconds for images of any size, one image serves every machine, and a
// machine may return with another UID base. systemd-nspawn runs on the merged tree with
// --private-users=BASE:65536 --private-users-ownership=off, because it cannot ID-map a
// finished overlay itself (EINVAL).
//
// This needs Linux 5.19, the first whose overlayfs accepts ID-mapped layers, and layers
// on a file system that can be ID-mapped. Otherwise the machine gets a plain overlay in
// which the owners are changed (Overlay.MountChowned).
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

// maxLayers is OVL_MAX_STACK of the kernel.
const maxLayers = 500

// Overlay describes the root file system of a machine, or another merged tree that the
// machine sees. If none of RW, Memory and Upper is set, it is read-only and needs at
// least two layers.
type Overlay struct {
	Lower   []string // read-only layers, the topmost first
	RW      string   // directory on a real file system; its upper/ takes the changes
	Memory  uint64   // if not 0, a tmpfs of this many bytes takes the changes instead of RW, and ends with the overlay
	Upper   string   // takes the changes itself, instead of RW; symbolic links are not followed
	Work    string   // name of overlayfs's work directory beside Upper; created if missing, not removed
	Root    string   // root of the machine: layers in it are already shifted; may be empty
	Target  string   // where the merged tree appears; created if missing
	UIDBase uint32   // host UID of the machine's root, a multiple of idmap.RangeSize; 0: no user namespace

	// Open returns a layer as a detached mount, by its name. If Open is nil, names are
	// paths of directories on the host, without symbolic links.
	Open func(dir string) (*os.File, error)

	// Within calls work in a mount namespace in which work may mount at Target. If Within
	// is nil, that is a copy of the host's namespace, whose cost grows with the number of
	// mounts on the host.
	Within func(work func() error) error

	chowned bool // owners are changed in the merged tree, not by ID mapping
}

// writable is a directory that contains the upper and the work directory of overlayfs,
// which must be on one mount.
type writable struct{ dir, upper, work string }

// writable returns the writable directories. The result has no dir if the tree is
// read-only, or if its changes are kept in memory.
func (o Overlay) writable() writable {
	if o.Upper != "" {
		return writable{dir: filepath.Dir(o.Upper), upper: filepath.Base(o.Upper), work: o.Work}
	}
	return writable{dir: o.RW, upper: "upper", work: "work"}
}

func (o Overlay) readOnly() bool { return o.RW == "" && o.Upper == "" && o.Memory == 0 }

// Mount mounts the merged tree at Target. If it fails, nothing remains mounted. The error
// is idmap.ErrUnmappable if MountChowned may succeed instead.
//
// RW should lie in a directory that only root can enter: setuid-root files of the machine
// belong to host root there.
func (o Overlay) Mount() error { return o.mount(o.Assemble) }

// MountChowned is like Mount, for layers that cannot be ID-mapped (see AssembleChowned).
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

// AssembleChowned is like Assemble, for layers that cannot be ID-mapped. It changes the
// owners of all files, which takes time proportional to their number. Changing an owner
// copies the file's metadata to upper/, so the image is not modified. With metacopy
// (Linux 4.19) the contents are not copied.
//
// The kernel documentation warns against metacopy with untrusted layers. It is safe here,
// because neither an image nor a machine can set trusted.* attributes.
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

// mount attaches the detached tree that assemble returns to Target.
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
		return fmt.Errorf("%d lower layers; overlayfs accepts at most %d", len(o.Lower), maxLayers)
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

// prepareTarget creates the target if it is missing, and refuses a target with a mount.
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

// prepareWork creates the work directory beside Upper. beside is their open parent
// directory.
func (o Overlay) prepareWork(beside int) error {
	mounted, err := mounts.IsPoint(o.Upper)
	if err != nil {
		return err
	}
	if mounted {
		return fmt.Errorf("something is mounted at %s: overlayfs needs a work directory beside it on the same mount; use a directory in it", o.Upper)
	}
	if err := unix.Mkdirat(beside, o.Work, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make work directory: %w", err)
	}
	return nil
}

// prepareRW creates rw/work and rw/upper. The merged root shows the attributes of upper,
// so upper gets the attributes of top, the root of the topmost layer, with its owner
// shifted. It is renamed to upper last, so that a directory left by an interrupted
// attempt is not used as if it were complete.
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

// shifted reports whether files in a layer have the machine's owners already.
func (o Overlay) shifted(layer string) bool {
	return o.Root != "" && strings.HasPrefix(layer+"/", o.Root+"/")
}

// unshift returns the ID on disk of a machine's owner. Host root, which creates mount
// points in the root, counts as the machine's root.
func (o Overlay) unshift(id uint32) uint32 {
	if id < o.UIDBase {
		return 0
	}
	return id - o.UIDBase
}

// refuseReadOnly returns an error if overlayfs has fallen back to read-only. overlayfs
// does so without an error, for example if it cannot use its work directory.
func refuseReadOnly(tree int) error {
	var stat unix.Statfs_t
	if err := unix.Fstatfs(tree, &stat); err != nil {
		return fmt.Errorf("stat overlay: %w", err)
	}
	if stat.Flags&unix.ST_RDONLY != 0 {
		return errors.New("the overlay was mounted read-only; see the kernel log for the reason")
	}
	return nil
}
