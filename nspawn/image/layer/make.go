package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// make creates the file of an entry, with all attributes except for the time of a
// directory.
func (u *unpacker) make(at entryAt, hdr *tar.Header) error {
	var err error
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		err = u.makeFile(at, hdr.Size)
	case tar.TypeDir:
		err = u.makeDirectory(at)
	case tar.TypeSymlink:
		err = u.makeSymlink(at, hdr.Linkname)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		err = u.makeNode(at, hdr)
	case tar.TypeLink: // a hard link has the attributes of its file
		return u.makeLink(at, hdr.Linkname)
	default:
		err = fmt.Errorf("entries of type %q are not supported", hdr.Typeflag)
	}
	if err != nil {
		return err
	}
	return setAttributes(at, hdr)
}

func (u *unpacker) makeFile(at entryAt, size int64) error {
	if limit := u.opts.MaxBytes; limit > 0 && size > limit-u.stats.Bytes {
		return fmt.Errorf("its %d bytes make the tree larger than the limit of %d", size, limit)
	}
	file := -1
	err := u.makeReplacing(at, func() (err error) {
		// With O_EXCL, a symbolic link is not followed.
		file, err = unix.Openat(at.dir, at.name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	err = u.write(file, size)
	if errClose := unix.Close(file); err == nil && errClose != nil {
		err = fmt.Errorf("close file: %w", errClose)
	}
	return err
}

// write copies the content of the entry to file. It skips buffers that contain only
// zeros, so sparse files remain sparse.
func (u *unpacker) write(file int, size int64) error {
	if size > int64(len(u.buf)) { // Smaller files have no holes.
		if err := unix.Ftruncate(file, size); err != nil {
			return fmt.Errorf("extend file to %d bytes: %w", size, err)
		}
	}
	for offset := int64(0); offset < size; {
		data := u.buf[:min(int64(len(u.buf)), size-offset)]
		if _, err := io.ReadFull(u.tar, data); err != nil {
			return fmt.Errorf("read content: %w", err)
		}
		if len(data) < len(u.buf) || !isZero(data) {
			if err := writeAt(file, data, offset); err != nil {
				return fmt.Errorf("write content: %w", err)
			}
		}
		offset += int64(len(data))
		u.stats.Bytes += int64(len(data))
	}
	return nil
}

func isZero(data []byte) bool {
	return data[0] == 0 && bytes.Equal(data[1:], data[:len(data)-1])
}

func writeAt(file int, data []byte, offset int64) error {
	for len(data) > 0 {
		n, err := unix.Pwrite(file, data, offset)
		if err != nil {
			return err
		}
		data, offset = data[n:], offset+int64(n)
	}
	return nil
}

// makeDirectory creates a directory, or keeps an existing one. A directory that replaces
// a whiteout hides the contents of the same directory in the layers below.
func (u *unpacker) makeDirectory(at entryAt) error {
	err := unix.Mkdirat(at.dir, at.name, 0o700)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make directory: %w", err)
	}
	there, err := at.stat()
	if err != nil || there.Mode&unix.S_IFMT == unix.S_IFDIR {
		return err
	}
	if err := u.remove(at); err != nil {
		return err
	}
	if err := unix.Mkdirat(at.dir, at.name, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if isWhiteout(there) {
		return setOpaque(at)
	}
	return nil
}

func (u *unpacker) makeSymlink(at entryAt, target string) error {
	err := u.makeReplacing(at, func() error { return unix.Symlinkat(target, at.dir, at.name) })
	if err != nil {
		return fmt.Errorf("make symbolic link to %.200q: %w", target, err)
	}
	return nil
}

// makeNode creates a device node or a FIFO.
func (u *unpacker) makeNode(at entryAt, hdr *tar.Header) error {
	mode, device := uint32(unix.S_IFIFO), uint64(0)
	if hdr.Typeflag != tar.TypeFifo {
		mode = unix.S_IFBLK
		if hdr.Typeflag == tar.TypeChar {
			mode = unix.S_IFCHR
		}
		if uint64(hdr.Devmajor) >= 1<<12 || uint64(hdr.Devminor) >= 1<<20 { // MINORBITS in linux/kdev_t.h
			return fmt.Errorf("there is no device %d:%d", hdr.Devmajor, hdr.Devminor)
		}
		device = unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
	}
	if mode == unix.S_IFCHR && device == 0 {
		return errors.New("a character device 0:0 would be a whiteout of overlayfs")
	}
	err := u.makeReplacing(at, func() error { return unix.Mknodat(at.dir, at.name, mode|0o600, int(device)) })
	if err != nil {
		return fmt.Errorf("make device node or FIFO: %w", err)
	}
	return nil
}

// makeLink creates a hard link. If target is a symbolic link, the new name is a link to
// the symbolic link itself.
func (u *unpacker) makeLink(at entryAt, target string) error {
	if err := u.link(at, target); err != nil {
		return fmt.Errorf("make hard link to %.200q: %w", target, err)
	}
	return nil
}

func (u *unpacker) link(at entryAt, target string) error {
	target, err := cleanName(target)
	if err != nil {
		return err
	}
	parent, name := split(target)
	dir, err := u.open(parent, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	old := entryAt{dir, name}
	file, err := old.stat()
	if err != nil {
		return err
	}
	if isWhiteout(file) {
		return unix.ENOENT
	}
	if there, err := at.stat(); err == nil && there.Ino == file.Ino {
		return nil // Removing at could remove the file itself.
	}
	return u.makeReplacing(at, func() error { return unix.Linkat(old.dir, old.name, at.dir, at.name, 0) })
}
