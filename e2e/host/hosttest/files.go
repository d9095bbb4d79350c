package hosttest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// Write creates a file with an owner and a mode, and the directories above it.
func Write(t *testing.T, path, text string, mode os.FileMode, uid, gid int) {
	t.Helper()
	must.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must.NoError(t, os.WriteFile(path, []byte(text), mode))
	must.NoError(t, os.Chown(path, uid, gid))
	must.NoError(t, os.Chmod(path, mode))
}

// Owner returns "uid:gid mode" of the file at path.
func Owner(t *testing.T, path string) string {
	t.Helper()
	var stat unix.Stat_t
	must.NoError(t, unix.Lstat(path, &stat), must.Sprint(path))
	return fmt.Sprintf("%d:%d %04o", stat.Uid, stat.Gid, stat.Mode&0o7777)
}

// Owned returns the text that Owner returns for a file with these.
func Owned(uid, gid uint32, mode int) string {
	return fmt.Sprintf("%d:%d %04o", uid, gid, mode)
}

// Mounts returns the mount table without the IDs, which vary.
func Mounts(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	must.NoError(t, err)
	var lines []string
	for line := range strings.Lines(string(text)) {
		lines = append(lines, strings.Join(strings.Fields(line)[3:], " "))
	}
	return lines
}

// Fill writes size bytes to a file and syncs them to the disk.
func Fill(path string, size int) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	chunk := make([]byte, 1<<16)
	for range size / len(chunk) {
		if _, err := file.Write(chunk); err != nil {
			return err
		}
	}
	return unix.Fsync(int(file.Fd()))
}
