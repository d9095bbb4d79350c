package driver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/nspawn"
)

// output opens the streams of a task's output, for one start.
type output struct {
	driver *Driver
	task   *drivers.TaskConfig
	opened bool
}

// open opens the task's output. If no log collector reads it, the task would
// block, so its output goes to the journal instead. Returning an error is no option:
// after a crash of the plugin, Nomad fails a task that cannot be started.
func (o *output) open() (nspawn.Streams, error) {
	o.opened = true
	streams, err := openStreams(o.driver.currentConfig(), o.task)
	if errors.Is(err, errNoReader) {
		o.driver.emit(o.task, "Output goes to the host's journal until the task is restarted: Nomad's log collector has stopped reading")
		return nspawn.Streams{}, nil
	}
	return streams, err
}

// release releases the log collector if the start did not get as far as open. Until
// someone opens the FIFO, the collector needs 4 s to stop (logmon.go, Close).
func (o *output) release() {
	if !o.opened {
		streams, _ := openStreams(o.driver.currentConfig(), o.task)
		streams.Close()
	}
}

// openStreams opens the streams from which Nomad reads the task's output. Without a log
// collector there are none.
func openStreams(config operator.Config, cfg *drivers.TaskConfig) (nspawn.Streams, error) {
	if config.DisableLogCollection {
		return nspawn.Streams{}, nil
	}
	stdout, err := openStream(cfg.AllocDir, cfg.StdoutPath, cfg.ID)
	if err != nil {
		return nspawn.Streams{}, fmt.Errorf("open the task's stdout: %w", err)
	}
	stderr, err := openStream(cfg.AllocDir, cfg.StderrPath, cfg.ID)
	if err != nil {
		stdout.Close()
		return nspawn.Streams{}, fmt.Errorf("open the task's stderr: %w", err)
	}
	return nspawn.Streams{Stdout: stdout, Stderr: stderr}, nil
}

// openStream opens a FIFO for reading and writing, so that a task without a reader gets no
// SIGPIPE. The descriptor must stay blocking, because the task shares its mode.
func openStream(allocDir, path, id string) (*os.File, error) {
	if path == os.DevNull {
		return os.OpenFile(path, os.O_RDWR, 0)
	}
	// Use the same file for everything, because another file may appear at the path.
	fifo, err := openBelow(allocDir, path)
	if err != nil {
		return nil, err
	}
	defer fifo.Close()
	if err := claimStream(fifo, id); err != nil {
		return nil, err
	}
	writer, err := awaitReader(fifo)
	if err != nil {
		return nil, err
	}
	defer writer.Close()
	file, err := reopen(fifo, unix.O_RDWR)
	if err != nil {
		return nil, err
	}
	// Programs open /dev/stderr, and thereby the FIFO, again, as any user.
	if err := file.Chmod(0o622); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

var errNoReader = errors.New("no log collector of Nomad reads it")

// startAttribute is an extended attribute of a FIFO: the ID of the start that has opened
// it. Trusted attributes belong to root, and are not limited to regular files (xattr(7)).
const startAttribute = "trusted.nomad-driver-nspawn.start"

// claimStream fails if the same start has opened the FIFO before. That was in a plugin
// that was killed before the task had the FIFO. When the last writer closed it, the log
// collector stopped reading until the task is restarted, which is a start with another ID.
func claimStream(fifo *os.File, id string) error {
	before := make([]byte, len(id))
	if n, err := unix.Getxattr(itself(fifo), startAttribute, before); err == nil && string(before[:n]) == id {
		return fmt.Errorf("open %s: %w", fifo.Name(), errNoReader)
	}
	if err := unix.Setxattr(itself(fifo), startAttribute, []byte(id), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("mark %s as opened: %w", fifo.Name(), err)
	}
	return nil
}

// readerTimeout limits the wait until Nomad's log collector opens a FIFO. It should do so
// before the task starts.
const readerTimeout = 5 * time.Second

// awaitReader opens a FIFO for writing, which waits for its reader. Without a reader, the
// task would block after 64 KiB of output.
func awaitReader(fifo *os.File) (*os.File, error) {
	if file, err := reopen(fifo, unix.O_WRONLY|unix.O_NONBLOCK); !errors.Is(err, unix.ENXIO) {
		return file, err // nearly always, there is a reader
	}
	type result struct {
		file *os.File
		err  error
	}
	opened := make(chan result, 1)
	waiting, err := reopen(fifo, unix.O_PATH) // a descriptor of its own, as the caller may close fifo
	if err != nil {
		return nil, err
	}
	go func() {
		defer waiting.Close()
		file, err := reopen(waiting, unix.O_WRONLY)
		opened <- result{file, err}
	}()
	select {
	case r := <-opened:
		return r.file, r.err
	case <-time.After(readerTimeout):
	}
	reader, err := reopen(fifo, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	if r := <-opened; r.err == nil { // the reader has ended the wait
		r.file.Close()
	}
	return nil, fmt.Errorf("open %s: %w", fifo.Name(), errNoReader)
}

// itself returns a path of an open file.
func itself(file *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", file.Fd()) }

func reopen(file *os.File, flags int) (*os.File, error) {
	fd, err := unix.Open(itself(file), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file.Name(), err)
	}
	return os.NewFile(uintptr(fd), file.Name()), nil
}

// openBelow opens a FIFO without reading or writing (O_PATH). Other tasks of the
// allocation may write to the directory, so no symbolic link below it is followed
// (CVE-2026-6959).
func openBelow(allocDir, path string) (*os.File, error) {
	relative, err := filepath.Rel(allocDir, path)
	if err != nil {
		return nil, err
	}
	base, err := unix.Open(allocDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", allocDir, err)
	}
	defer unix.Close(base)
	fd, err := unix.Openat2(base, relative, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH,
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || stat.Mode&unix.S_IFMT != unix.S_IFIFO {
		file.Close()
		return nil, fmt.Errorf("open %s: not a FIFO", path)
	}
	return file, nil
}
