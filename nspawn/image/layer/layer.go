// Package layer unpacks tar streams into directories that become lower layers
// of an overlayfs, or whole root file systems.
//
// The stream is not trusted. Whatever it holds, nothing outside of the directory
// is read, made or changed, and no overlayfs metadata other than that of the
// layer's own whiteouts comes into being. What runs on the tree later is as
// trustworthy as the image: setuid files, file capabilities and device nodes are
// kept.
//
// It needs to be root, and Linux 5.6 with /proc (openat2).
package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// Options says how to unpack.
type Options struct {
	// Whiteouts makes the stream an OCI layer: an entry `.wh.NAME` hides NAME of
	// the layers below, by the character device 0/0 of that name, and
	// `.wh..wh..opq` hides all that is in its directory there, by the extended
	// attribute trusted.overlay.opaque=y (OCI image specification, layer.md,
	// "Whiteouts"). What the layer itself brings is not hidden. Without, these
	// are ordinary files.
	//
	// overlayfs ignores the attribute on the root of a layer: if it is there,
	// leave the layers below out of the overlay.
	Whiteouts bool

	// Unmarked takes a stream that ends without its two blocks of zeros. Who
	// asks for it has another way to see that nothing is cut off, as the digest
	// of an OCI layer: umoci insert writes such layers.
	Unmarked bool

	MaxBytes   int64 // how much content of files is written at most, holes included; 0: no limit
	MaxEntries int64 // how many entries are made at most; 0: no limit
}

// Stats tells what a stream held.
type Stats struct {
	Bytes   int64 // content of regular files, holes included
	Entries int64 // entries, and directories made for want of an entry of their own
}

// Unpack writes the tar stream r into dir, an empty directory on a local file
// system that no one else writes to, and returns what it held. It reads r to its
// end, so a checksum at the end of a compressed stream is looked at, and
// whatever reads along, say to compute a digest, gets all of it.
//
// Names are taken as inside of a chroot to dir: absolute ones are relative to
// dir, and so are symbolic links in the path of an entry. `..` in a name is an
// error. The last component is never followed; what is there already is
// replaced, unless both are directories. Missing directories, and dir itself,
// are made or become mode 0755 of root.
//
// Owner (both IDs below 65536, as a machine has no others), mode and
// modification time are those of the entry, and so are the extended attributes
// security.capability and user.*, the latter where file and file system take
// them. All others are dropped: trusted.overlay.* would be metadata of the
// overlay, and security labels belong to the host. A character device 0/0 is an
// error, as overlayfs takes it for a whiteout. Runs of zeros become holes.
//
// A stream that is damaged or, unless opts.Unmarked, ends before its two blocks of
// zeros (POSIX pax, "ustar Interchange Format") is an error. Nothing is synced to disk. Upon
// an error dir is left as it is then; the caller removes it.
func Unpack(ctx context.Context, r io.Reader, dir string, opts Options) (Stats, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Stats{}, fmt.Errorf("open %s to unpack into: %w", dir, err)
	}
	defer unix.Close(root)
	in := &stream{ctx: ctx, r: r}
	u := unpacker{
		tree: tree{root: root},
		tar:  tar.NewReader(in),
		opts: opts,
		buf:  make([]byte, 128<<10),
	}
	defer u.forget()
	if err := u.unpack(ctx, in); err != nil {
		return Stats{}, fmt.Errorf("unpack into %s: %w", dir, err)
	}
	return u.stats, nil
}

type unpacker struct {
	tree
	tar   *tar.Reader
	opts  Options
	stats Stats
	times []dirTime
	paths int    // bytes of memory that times takes
	buf   []byte // content on its way
}

// dirTime is the modification time a directory gets when nothing is made in it
// any more.
type dirTime struct {
	path string
	time time.Time
}

func (u *unpacker) unpack(ctx context.Context, in *stream) error {
	if err := setDefaults(entryAt{u.root, "."}); err != nil {
		return err
	}
	for {
		hdr, err := u.tar.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read tar stream: %w", err)
		}
		if err := u.entry(hdr); err != nil {
			return fmt.Errorf("entry %.200q: %w", hdr.Name, err)
		}
	}
	if err := in.finish(u.opts.Unmarked); err != nil {
		return fmt.Errorf("read tar stream: %w", err)
	}
	return u.setTimes(ctx)
}

func (u *unpacker) entry(hdr *tar.Header) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader { // a comment, as of git archive
		return nil
	}
	if err := u.count(); err != nil {
		return err
	}
	path, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	at, err := u.locate(path)
	if err != nil {
		return err
	}
	if u.opts.Whiteouts && isWhiteoutName(at.name) {
		return whiteout(at)
	}
	if err := u.make(at, hdr); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeDir {
		return u.remember(path, hdr.ModTime)
	}
	return nil
}

// maxPaths limits the memory for the paths of directories, in bytes. An image with
// a hundred thousand directories has 8 MB of them.
const maxPaths = 64 << 20

// remember keeps the time of a directory.
func (u *unpacker) remember(path string, at time.Time) error {
	const perEntry = 64 // dirTime, and what the allocator adds
	u.paths += len(path) + perEntry
	if u.paths > maxPaths {
		return fmt.Errorf("the paths of its %d directories have more than the limit of %d bytes", len(u.times)+1, maxPaths)
	}
	u.times = append(u.times, dirTime{path, at})
	return nil
}

// count counts an entry that is about to be made.
func (u *unpacker) count() error {
	if u.opts.MaxEntries > 0 && u.stats.Entries >= u.opts.MaxEntries {
		return fmt.Errorf("more than %d entries, which is the limit", u.opts.MaxEntries)
	}
	u.stats.Entries++
	return nil
}

// setTimes sets the times of directories, in the order of the entries. One that
// is not there any more has been replaced by a later entry.
func (u *unpacker) setTimes(ctx context.Context) error {
	for _, d := range u.times {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir, err := u.open(d.path, unix.O_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open directory %.200q: %w", d.path, err)
		}
		err = setTime(entryAt{dir, "."}, d.time)
		unix.Close(dir)
		if err != nil {
			return fmt.Errorf("directory %.200q: %w", d.path, err)
		}
	}
	return nil
}
