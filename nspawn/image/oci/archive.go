package oci

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Limits of an archive's table of contents. The images with the most layers have a few
// hundred entries.
const (
	maxEntries    = 10_000
	maxNameLength = 1024 // bytes
)

// archive is a tar file whose files are read in place.
type archive struct {
	path  string
	files map[string]extent
	links map[string]string // symbolic links with their cleaned targets
}

// extent is the position of a file in the archive, in bytes.
type extent struct{ offset, size int64 }

// readArchive reads the table of contents.
func readArchive(ctx context.Context, path string) (*archive, error) {
	file, size, err := openArchive(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	a := &archive{path: path, files: map[string]extent{}, links: map[string]string{}}
	for r := tar.NewReader(file); ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		header, err := r.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return nil, explainTar(err)
		}
		// The reader has read nothing from the file after the header.
		offset, err := file.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if err := a.add(header, offset, size); err != nil {
			return nil, err
		}
	}
}

func openArchive(path string) (*os.File, int64, error) {
	return regular(openPlain(path, unix.O_NONBLOCK)) // without O_NONBLOCK, opening a FIFO would wait
}

// openPlain opens a path that the caller has resolved and checked. It refuses symbolic
// links, which must be new.
func openPlain(path string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags:   flags | unix.O_RDONLY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func explainTar(err error) error {
	if errors.Is(err, tar.ErrHeader) {
		return fmt.Errorf("read archive: %w; if it is compressed, decompress it first", err)
	}
	return fmt.Errorf("read archive: %w", err)
}

// add records an entry of an archive with a size of total bytes.
func (a *archive) add(header *tar.Header, offset, total int64) error {
	name := path.Clean(header.Name)
	if len(name) > maxNameLength || !filepath.IsLocal(name) {
		return fmt.Errorf("archive has an entry of bad name %.100q", header.Name)
	}
	switch header.Typeflag {
	case tar.TypeReg:
		if header.Size > total-offset {
			return fmt.Errorf("archive is truncated in %s", name)
		}
		return a.addOnce(name, func() { a.files[name] = extent{offset, header.Size} })
	case tar.TypeSymlink:
		return a.addOnce(name, func() { a.links[name] = path.Join(path.Dir(name), header.Linkname) })
	}
	return nil
}

func (a *archive) addOnce(name string, add func()) error {
	_, isFile := a.files[name]
	_, isLink := a.links[name]
	if isFile || isLink {
		return fmt.Errorf("archive has two entries %s", name)
	}
	if len(a.files)+len(a.links) == maxEntries {
		return fmt.Errorf("archive has more than %d entries", maxEntries)
	}
	add()
	return nil
}

// open opens a file of the archive. It follows one symbolic link within the archive:
// before Docker 25, docker save writes a link for each layer that another image also has.
func (a *archive) open(name string) (io.ReadCloser, int64, error) {
	name = path.Clean(name)
	if target, ok := a.links[name]; ok {
		name = target
	}
	at, ok := a.files[name]
	if !ok {
		return nil, 0, fmt.Errorf("no file %s in the archive: %w", name, fs.ErrNotExist)
	}
	file, _, err := openArchive(a.path)
	if err != nil {
		return nil, 0, err
	}
	return section{io.NewSectionReader(file, at.offset, at.size), file}, at.size, nil
}

// section is a part of a file. Closing it closes the file.
type section struct {
	*io.SectionReader
	io.Closer
}
