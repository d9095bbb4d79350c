// Package layer unpacks tar streams into directories that become lower layers of an
// overlayfs, or complete root file systems.
//
// The stream is not trusted. Whatever it contains, nothing outside of the directory is
// read, created or changed, and no overlayfs metadata is created except for the layer's
// own whiteouts. Programs on the tree are as trustworthy as the image: setuid files, file
// capabilities and device nodes are kept.
//
// The package needs root privileges, and Linux 5.6 with /proc (openat2).
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

// Options control how a stream is unpacked.
type Options struct {
	// Whiteouts treats the stream as an OCI layer. An entry `.wh.NAME` hides NAME in the
	// layers below; it becomes a character device 0/0 named NAME. An entry `.wh..wh..opq`
	// hides everything in its directory in the layers below; the directory gets the
	// extended attribute trusted.overlay.opaque=y (OCI image specification, layer.md,
	// "Whiteouts"). Entries of the layer itself are not hidden. If Whiteouts is false,
	// these are ordinary files.
	//
	// overlayfs ignores the attribute on the root of a layer. If the root has it, do not
	// use the layers below in the overlay.
	Whiteouts bool

	// Unmarked accepts a stream that ends without its two blocks of zeros. The caller
	// must then detect a truncated stream in another way, such as by the digest of an OCI
	// layer. umoci insert writes such layers.
	Unmarked bool

	MaxBytes   int64 // maximum size of all files, holes included; 0: no limit
	MaxEntries int64 // maximum number of entries that are created; 0: no limit
}

// Stats describes the content of a stream.
type Stats struct {
	Bytes   int64 // size of all regular files, holes included
	Entries int64 // number of entries, including directories that are created without an entry of their own
}

// Unpack writes the tar stream r into dir, and returns statistics. dir must be an empty
// directory on a local file system to which no one else writes. Unpack reads r to its
// end. So a checksum at the end of a compressed stream is verified, and a reader that
// computes a digest sees the complete stream.
//
// Names are resolved as in a chroot to dir: absolute names, and symbolic links in the
// path of an entry, are relative to dir. `..` in a name is an error. The last component
// is never followed; an existing file is replaced, unless the old and the new one are
// both directories. Missing directories are created with mode 0755 and owned by root, and
// dir itself gets the same attributes.
//
// Owner, mode and modification time are those of the entry. Both owner IDs must be below
// 65536, because a machine has no others. Of the extended attributes, security.capability
// and user.* are set, the latter if the file and the file system support them. All others
// are dropped: trusted.overlay.* would be metadata of the overlay, and security labels
// belong to the host. A character device 0/0 is an error, because overlayfs would
// interpret it as a whiteout. Runs of zeros become holes.
//
// A damaged stream is an error, and unless opts.Unmarked is set, so is a stream that ends
// before its two blocks of zeros (POSIX pax, "ustar Interchange Format"). Nothing is
// synced to disk. After an error, dir remains as it is; the caller removes it.
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
	paths int    // bytes of memory for the paths in times
	buf   []byte // buffer for content
}

// dirTime is the modification time of a directory. It is set when nothing is created in
// the directory any more.
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
	if hdr.Typeflag == tar.TypeXGlobalHeader { // a comment, for example of git archive
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

// maxPaths limits the memory for the paths of directories, in bytes. An image with a
// hundred thousand directories has 8 MB of them.
const maxPaths = 64 << 20

// remember stores the time of a directory.
func (u *unpacker) remember(path string, at time.Time) error {
	const perEntry = 64 // a dirTime, and overhead of the allocator
	u.paths += len(path) + perEntry
	if u.paths > maxPaths {
		return fmt.Errorf("the paths of its %d directories have more than the limit of %d bytes", len(u.times)+1, maxPaths)
	}
	u.times = append(u.times, dirTime{path, at})
	return nil
}

// count counts an entry that is about to be created.
func (u *unpacker) count() error {
	if u.opts.MaxEntries > 0 && u.stats.Entries >= u.opts.MaxEntries {
		return fmt.Errorf("more than %d entries, which is the limit", u.opts.MaxEntries)
	}
	u.stats.Entries++
	return nil
}

// setTimes sets the times of directories, in the order of the entries. A directory that
// does not exist any more has been replaced by a later entry.
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
