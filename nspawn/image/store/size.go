package store

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// sizeFile is a file beside the payload of an item, with the item's bytes on disk.
// Counting them each time would take too long.
const sizeFile = "size"

func writeSize(dir string) error {
	bytes, err := measure(dir)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, sizeFile), strconv.AppendInt(nil, bytes, 10), 0o600)
}

// readSize returns the size of the item in dir. If the record is damaged, it counts
// again.
func readSize(dir string) (bytes int64, err error) {
	if text, err := os.ReadFile(filepath.Join(dir, sizeFile)); err == nil {
		if bytes, err := strconv.ParseInt(string(text), 10, 64); err == nil {
			return bytes, nil
		}
	}
	return measure(dir)
}

// measure counts the bytes on disk of dir and everything in it. A file with several links
// is counted once.
func measure(dir string) (bytes int64, err error) {
	type inode struct{ dev, number uint64 }
	seen := map[inode]bool{}
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var stat unix.Stat_t
		if err := unix.Lstat(path, &stat); err != nil {
			return &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		if stat.Nlink > 1 && !entry.IsDir() {
			id := inode{stat.Dev, stat.Ino}
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		bytes += stat.Blocks * 512 // the unit of st_blocks (stat(2))
		return nil
	})
	return bytes, err
}
