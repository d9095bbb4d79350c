package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// TestLock checks that a caller that waits for a lock gets it when the holder releases it.
func TestLock(t *testing.T) {
	locks := Names{File: filepath.Join(t.TempDir(), "run/lock")}
	first, err := locks.Lock("machine")
	must.NoError(t, err)
	_, err = locks.TryLock("machine")
	must.True(t, errors.Is(err, ErrLocked), must.Sprint(err))
	other, err := locks.TryLock("other")
	must.NoError(t, err)
	must.NoError(t, other.Close())

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		defer cancel()
		if second, err := locks.Lock("machine"); err == nil {
			second.Close()
		}
	}()
	for !awaited(t, first) && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	must.NoError(t, ctx.Err())
	must.NoError(t, first.Close())
	<-ctx.Done()
	must.ErrorIs(t, ctx.Err(), context.Canceled)
}

// awaited reports whether someone waits for a lock on the file (proc_locks(5)).
func awaited(t *testing.T, file *os.File) bool {
	var stat unix.Stat_t
	must.NoError(t, unix.Fstat(int(file.Fd()), &stat))
	locks, err := os.ReadFile("/proc/locks")
	must.NoError(t, err)
	return regexp.MustCompile(fmt.Sprintf(`-> OFDLCK .* \w+:\w+:%d `, stat.Ino)).Match(locks)
}
