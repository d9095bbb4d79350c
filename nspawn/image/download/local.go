package download

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// localFile is a local file that can be read until its context is done.
type localFile struct {
	ctx  context.Context
	file *os.File // not embedded, because io.Copy would call its WriteTo instead of Read
	size int64
}

// openLocal opens a regular file. Without O_NONBLOCK, opening a FIFO would wait for a
// writer.
func openLocal(ctx context.Context, path string) (*localFile, error) {
	// The caller has resolved and checked the path, so a symbolic link in it is new.
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errAbsent
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	file := os.NewFile(uintptr(fd), path)
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return &localFile{ctx, file, info.Size()}, nil
}

func (f *localFile) Read(p []byte) (int, error) {
	if f.ctx.Err() != nil {
		return 0, context.Cause(f.ctx)
	}
	return f.file.Read(p)
}

func (f *localFile) Close() error { return f.file.Close() }
