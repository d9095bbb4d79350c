package hostproc

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host"
)

// Appear waits until a file of the host matches the pattern, in which * stands for any
// name (path.Match). The directories before the first * must exist.
func Appear(ctx context.Context, h *host.Host, pattern string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch files: %w", err)
	}
	defer unix.Close(fd)
	dirs := []string{h.Root()}
	for name := range strings.SplitSeq(strings.TrimPrefix(pattern, "/"), "/") {
		if dirs, err = appearIn(ctx, fd, dirs, name); err != nil {
			return fmt.Errorf("wait for %s to appear: %w", pattern, err)
		}
	}
	return nil
}

// appearIn waits until entries of the directories match, and returns them. It starts to
// watch before it looks, so it misses none.
func appearIn(ctx context.Context, fd int, dirs []string, name string) ([]string, error) {
	for _, dir := range dirs {
		const what = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_ONLYDIR
		if _, err := unix.InotifyAddWatch(fd, dir, what); err != nil && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	events := make([]byte, 16*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		var matches []string
		for _, dir := range dirs {
			found, err := filepath.Glob(filepath.Join(dir, name))
			if err != nil {
				return nil, err
			}
			matches = append(matches, found...)
		}
		if len(matches) > 0 {
			return matches, nil
		}
		if err := Poll(ctx, fd, unix.POLLIN); err != nil {
			return nil, err
		}
		_, _ = unix.Read(fd, events) // the contents do not matter
	}
}
